package bench

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/cli/bench/load"
)

// storeProgram runs the store alone, as referenceProgram runs etcd.
const storeProgram = "storeref"

// program is a reference program that waits for cases.
type program struct {
	name    string
	dir     string
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	errors  *strings.Builder
	pids    []int
}

// startProgram starts one with its members; it lies beside this program or in $PATH.
func (s *session) startProgram(ctx context.Context, name string, args ...string) (*program, error) {
	path, err := findProgram(name)
	if err != nil {
		return nil, err
	}
	p := &program{name: name, errors: &strings.Builder{}}
	if p.dir, err = os.MkdirTemp(s.dir, name+"-"); err != nil {
		return nil, err
	}
	p.command = exec.CommandContext(ctx, path, append(args, "--dir", p.dir)...)
	p.command.Cancel = func() error { return p.command.Process.Signal(os.Interrupt) }
	p.command.WaitDelay = 10 * time.Second
	p.command.Stderr = p.errors
	if p.in, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	var ready load.Ready
	if err := p.read(&ready); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.pids = ready.PIDs
	return p, nil
}

func (p *program) read(into any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %w: %s", p.name, err, strings.TrimSpace(p.errors.String()))
	}
	return json.Unmarshal(line, into)
}

// do has it do a case.
func (p *program) do(c load.Case) (load.Answer, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return load.Answer{}, err
	}
	var answer load.Answer
	if _, err = p.in.Write(append(line, '\n')); err == nil {
		err = p.read(&answer)
	}
	if err == nil && answer.Error != "" {
		err = fmt.Errorf("%s: %s", p.name, answer.Error)
	}
	return answer, err
}

func (p *program) close() error {
	err := p.in.Close() // which ends it
	if waited := p.command.Wait(); waited != nil {
		err = errors.Join(err, fmt.Errorf("%s: %w: %s", p.name, waited, strings.TrimSpace(p.errors.String())))
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// measureConsensus puts the same load on the store and on etcd, both without any API: with one member and with three, each a process of its
// own, the leader's being the one that makes the load. Three talk over sockets on loopback, ours through the peers' TLS port, etcd's over
// plain HTTP. Both run all the time and are loaded in turns.
func measureConsensus(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	for _, members := range []int{1, 3} {
		taken, err := s.compareStores(ctx, members)
		rows = append(rows, taken...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (s *session) compareStores(ctx context.Context, members int) (rows []Row, err error) {
	count := strconv.Itoa(members)
	etcd, err := s.startProgram(ctx, referenceProgram, "--serve", "--members", count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, etcd.close()) }()
	ours, err := s.startProgram(ctx, storeProgram, "--members", count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	span, rounds := time.Duration(s.times(2500, 700))*time.Millisecond, s.times(3, 1)
	for _, c := range storeCases(span) {
		what := fmt.Sprintf("%s, %d members", describe(c), members)
		err := s.step(what, func() error {
			taken, err := compare(c, rounds, ours, etcd)
			for i := range taken {
				taken[i].What = fmt.Sprintf("%s, %d members", taken[i].What, members)
			}
			rows = append(rows, taken...)
			return err
		})
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// storeCases are what both are loaded with.
func storeCases(span time.Duration) []load.Case {
	var all []load.Case
	for _, bytes := range []int{256, 4096} {
		for _, flight := range []int{1, 8, 32, 256} {
			all = append(all, load.Case{Op: "put", Bytes: bytes, InFlight: flight, For: span})
		}
	}
	for _, flight := range []int{1, 32, 256} {
		all = append(all, load.Case{Op: "get", Bytes: 256, InFlight: flight, For: span})
	}
	return all
}

func describe(c load.Case) string {
	if c.Op == "get" {
		return fmt.Sprintf("linearizable reads, %d in flight", c.InFlight)
	}
	return fmt.Sprintf("durable writes of %d B, %d in flight", c.Bytes, c.InFlight)
}

// aimOf is what a case should reach in etcd's rates.
func aimOf(c load.Case) Aim {
	switch {
	case c.Op == "get":
		return Aim{LeastRatio: 3}
	case c.InFlight >= 256:
		return Aim{LeastRatio: 4}
	case c.InFlight >= 32:
		return Aim{LeastRatio: 2}
	}
	return Aim{LeastRatio: 1}
}

// compare runs a case on both in turns, and writes on all shards too, which etcd does not tell from one.
func compare(c load.Case, rounds int, ours, etcd *program) ([]Row, error) {
	spread := c
	spread.Spread = true
	var reference, one, all []load.Result
	for range rounds {
		for _, turn := range []struct {
			who  *program
			what load.Case
			into *[]load.Result
		}{{etcd, c, &reference}, {ours, c, &one}, {ours, spread, &all}} {
			if turn.into == &all && c.Op == "get" {
				continue
			}
			answer, err := turn.who.do(turn.what)
			if err != nil {
				return nil, err
			}
			*turn.into = append(*turn.into, answer.Result)
		}
	}
	rows := storeRows(c, describe(c), one, reference)
	if len(all) > 0 {
		rows = append(rows, storeRows(c, describe(c)+", all shards", all, reference)...)
	}
	return rows, nil
}

func storeRows(c load.Case, what string, ours, etcd []load.Result) []Row {
	mine, reference := middle(ours), middle(etcd)
	return []Row{
		{
			What: what, Unit: "1/s", Measured: sampleOf([]float64{mine.PerSecond}),
			Against: "etcd", Reference: sampleOf([]float64{reference.PerSecond}), Aim: aimOf(c),
		},
		{
			What: "  time of one: " + what, Unit: "ms", Measured: Sample{P50: mine.P50, P99: mine.P99, N: mine.Count},
			Against: "etcd", Reference: Sample{P50: reference.P50, P99: reference.P99, N: reference.Count}, Aim: Aim{Tail: 1},
		},
	}
}

// middle is the round with the median rate.
func middle(rounds []load.Result) load.Result {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b load.Result) int { return cmp.Compare(a.PerSecond, b.PerSecond) })
	return sorted[len(sorted)/2]
}

// measureFailover kills the process that leads all shards of three members, again and again.
func measureFailover(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	p, err := s.startProgram(ctx, storeProgram, "--members", "3")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	var outages []float64
	err = s.step("kill the leader of all shards and write to each", func() error {
		for range s.times(20, 4) {
			answer, err := p.do(load.Case{Op: "kill"})
			if err != nil {
				return err
			}
			for _, ms := range answer.Outages {
				outages = append(outages, ms/1000)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []Row{
		{What: "SIGKILL of a leader's process → next write, over all shards", Unit: "s", Measured: sampleOf(outages), Aim: Aim{Most: 0.7}},
		{What: "  the worst of them", Unit: "s", Measured: sampleOf([]float64{slices.Max(outages)}), Aim: Aim{Most: 1.5}},
	}, nil
}

// measureShards looks at what shards cost that nobody uses: three members with 9, 33 and 129 shards each.
func measureShards(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	var before usage
	for i, data := range []int{8, 32, 128} {
		now, err := s.idleShards(ctx, data)
		if err != nil {
			return rows, err
		}
		what := fmt.Sprintf("idle store with %d shards", data+1)
		rows = append(rows,
			Row{What: what + ": CPU", Unit: "% of a core", Measured: sampleOf(now.shares)},
			Row{What: what + ": anonymous memory", Unit: "MiB", Measured: sampleOf(now.anonymous)})
		if i > 0 {
			added := float64(data * 3 / 4) // each step has four times the shards of the one before
			rows = append(rows,
				Row{What: "  for each shard more: CPU", Unit: "% of a core", Measured: sampleOf([]float64{(sampleOf(now.shares).P50 - sampleOf(before.shares).P50) / added})},
				Row{What: "  for each shard more: anonymous memory", Unit: "MiB", Measured: sampleOf([]float64{(sampleOf(now.anonymous).P50 - sampleOf(before.anonymous).P50) / added})})
		}
		before = now
	}
	return rows, nil
}

func (s *session) idleShards(ctx context.Context, data int) (u usage, err error) {
	p, err := s.startProgram(ctx, storeProgram, "--members", "3", "--shards", strconv.Itoa(data))
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	err = s.step(fmt.Sprintf("watch three idle members with %d shards", data+1), func() error {
		if err := pause(ctx, 5*time.Second); err != nil {
			return err
		}
		u.pids = p.pids
		return measureUsage(ctx, time.Duration(s.times(20, 5))*time.Second, &u)
	})
	return u, err
}
