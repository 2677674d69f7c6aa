package model

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"shoal/internal/cputime"
)

// BenchmarkScale simulates whole clusters with a hundred pods per node, up to 10,000 peers, 256 shards (the meta shard is one of them: it is
// as many as a revision can carry) and 1,000,000 pods, all of which run from the beginning. Then one node in a hundred, at most twenty, loses
// its power, and its pods are replaced. "10000-sparse" is the same cluster with ten pods per node: it shows what nodes times shards cost.
// Metrics, of CPU time (of all threads) as well as of real time, because the machine may have other work:
//
//	start-cpu-s        seconds of CPU until every pod is as desired
//	steady-v-s/s       virtual seconds per second while nothing happens: leases, status, checkers, clients
//	steady-v-s/cpu-s   the same per second of CPU time
//	faults-v-s/s       virtual seconds per second from the first death until 20 s later
//	faults-v-s/cpu-s   the same per second of CPU time
//	B/pod              live memory at the end, per pod: of the whole model, nodes and leaders' views included
//	peak-MiB           most memory that the process ever held (the smaller clusters run first)
func BenchmarkScale(b *testing.B) {
	for _, size := range []struct {
		name                  string
		peers, shards, onNode int
	}{{"100", 100, 16, 100}, {"1000", 1000, 64, 100}, {"10000-sparse", 10_000, 256, 10}, {"10000", 10_000, 256, 100}} {
		b.Run(size.name, func(b *testing.B) {
			for range b.N {
				runScale(b, size.peers, size.shards, size.onNode)
			}
		})
	}
}

// scaled is a cluster of that size: a Deployment has 500 pods at most.
func scaled(peers, shards, pods int) Config {
	cfg := Config{
		Seed: 1, Nodes: peers, Zones: 3, Allocatable: list("32", "64Gi", "160"), Shards: shards - 1, Length: time.Hour, Placed: true,
	}
	workloads := max(pods/400, 20)
	for i := range workloads {
		cfg.Workloads = append(cfg.Workloads, Workload{
			Name: fmt.Sprintf("app%d", i), Replicas: pods / workloads, Requests: list("200m", "256Mi", ""),
		})
	}
	return cfg
}

// mostDead bounds how many nodes die.
const mostDead = 20

func runScale(b *testing.B, peers, shards, onNode int) {
	pods := onNode * peers
	cfg := scaled(peers, shards, pods)
	before := liveBytes()
	m, err := newModel(cfg)
	if err != nil {
		b.Fatal(err)
	}
	settled := func() bool { return m.checks.convergence.since >= 0 }
	start := m.pace(2*time.Minute, settled)
	if !settled() {
		b.Fatalf("after %s: %s", m.now, m.checks.convergence.why)
	}
	b.Logf("%d pods on %d nodes are as desired at %s, after %s", m.placed, peers, m.now, start.real)
	b.ReportMetric(start.cpu.Seconds(), "start-cpu-s")
	m.pace(m.now+2*time.Second, never)
	m.pace(m.now+10*time.Second, never).report(b, "steady")
	dead := min(peers/100, mostDead)
	for i := range dead {
		m.schedule(Fault{At: m.now + time.Duration(i%5)*time.Second, Kind: Crash, Target: fmt.Sprintf("n%d", 50+i*100)})
	}
	m.pace(m.now+20*time.Second, never).report(b, "faults")
	if len(m.outcome.Violations) > 0 || m.outcome.Evictions < dead*onNode/2 {
		b.Fatal(m.outcome.Evictions, m.outcome.Violations)
	}
	b.ReportMetric(float64(liveBytes()-before)/float64(pods), "B/pod")
	b.ReportMetric(float64(peakBytes(b))/(1<<20), "peak-MiB")
	b.ReportMetric(0, "ns/op")
	runtime.KeepAlive(m)
}

// spent is what a part of a run has cost.
type spent struct{ virtual, real, cpu time.Duration }

func (s spent) report(b *testing.B, what string) {
	b.ReportMetric(s.virtual.Seconds()/s.real.Seconds(), what+"-v-s/s")
	b.ReportMetric(s.virtual.Seconds()/s.cpu.Seconds(), what+"-v-s/cpu-s")
}

// pace runs until a moment, or until done says so.
func (m *Model) pace(until time.Duration, done func() bool) spent {
	from, begun, cpu := m.now, time.Now(), cputime.Used()
	for len(m.steps) > 0 && m.steps[0].at <= until && !done() {
		m.next()
	}
	return spent{m.now - from, time.Since(begun), cputime.Used() - cpu}
}

func never() bool { return false }

func liveBytes() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// peakBytes is the most memory that this process ever had resident.
func peakBytes(b *testing.B) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0 // not Linux
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	return 0
}
