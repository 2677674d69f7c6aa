package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"shoal/cli/lab"
	"shoal/runtime/containerd"
)

// measureIdle looks at three peers that have nothing to do, each with its containerd. The percentiles are over the peers.
func measureIdle(ctx context.Context, s *session) ([]Row, error) {
	if err := s.closeLab(); err != nil { // an idle peer is one that has done nothing yet
		return nil, err
	}
	l, err := s.open(ctx, 3)
	if err != nil {
		return nil, err
	}
	rest, span := 15*time.Second, time.Duration(s.times(30, 10))*time.Second
	if err := s.step("let them come to rest", func() error { return pause(ctx, rest) }); err != nil {
		return nil, err
	}
	var peers, daemons usage
	err = s.step(fmt.Sprintf("watch them for %s", span), func() error {
		for _, p := range l.Peers {
			daemon, err := daemonOf(p)
			if err != nil {
				return err
			}
			peers.pids, daemons.pids = append(peers.pids, p.Pid()), append(daemons.pids, daemon)
		}
		return measureUsage(ctx, span, &peers, &daemons)
	})
	if err != nil {
		return nil, err
	}
	return append(peers.rows("peer", 150, 3), daemons.rows("its containerd", 30, 3)...), nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// daemonOf is the process ID of a peer's containerd, as the peer itself wrote it down.
func daemonOf(p *lab.Peer) (int, error) {
	text, err := os.ReadFile(filepath.Join(containerd.StateDir(p.Dir), "containerd.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(text)))
}

// usage is what some like processes take: memory at the end of a span in MiB, CPU during it in % of one core.
type usage struct {
	pids                []int
	resident, anonymous []float64
	before, shares      []float64
}

func measureUsage(ctx context.Context, span time.Duration, groups ...*usage) error {
	for _, u := range groups {
		for _, pid := range u.pids {
			ticks, err := cpuSeconds(pid)
			if err != nil {
				return err
			}
			u.before = append(u.before, ticks)
		}
	}
	begun := time.Now()
	if err := pause(ctx, span); err != nil {
		return err
	}
	for _, u := range groups {
		for i, pid := range u.pids {
			now, err := cpuSeconds(pid)
			if err != nil {
				return err
			}
			u.shares = append(u.shares, 100*(now-u.before[i])/time.Since(begun).Seconds())
			rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
			if err != nil {
				return err
			}
			u.resident = append(u.resident, mebibytes(rollup, "Rss:"))
			u.anonymous = append(u.anonymous, mebibytes(rollup, "Anonymous:"))
		}
	}
	return nil
}

// clockTick is the kernel's USER_HZ, which is 100 on every architecture that Go knows.
const clockTick = 100

// cpuSeconds is what a process has used so far, user and system.
func cpuSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may hold spaces; utime and stime are fields 14 and 15, of which the first after it is 3.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[12], 64)
	return (user + system) / clockTick, err
}

// mebibytes finds a line like "Rss:   1234 kB".
func mebibytes(rollup []byte, name string) float64 {
	for line := range strings.Lines(string(rollup)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == name {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err == nil {
				return kib / 1024
			}
		}
	}
	return 0
}

func (u *usage) rows(who string, memory, cpu float64) []Row {
	return []Row{
		{What: "idle " + who + ": RSS", Unit: "MiB", Measured: sampleOf(u.resident), Aim: Aim{Most: memory}},
		{What: "idle " + who + ": anonymous of it", Unit: "MiB", Measured: sampleOf(u.anonymous)},
		{What: "idle " + who + ": CPU", Unit: "% of a core", Measured: sampleOf(u.shares), Aim: Aim{Most: cpu}},
	}
}
