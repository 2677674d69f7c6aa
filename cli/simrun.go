package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/term"

	"shoal/sim"
	"shoal/sim/model"
	"shoal/sim/report"
)

// simRunCommand is `peer sim run`.
type simRunCommand struct {
	Scenario string        `arg:"" optional:"" help:"A file, or a name of 'peer sim list'."`
	Random   bool          `help:"Draw the faults from the seed, instead of a scenario."`
	Seed     *uint64       `help:"Of everything that is drawn. Default: the scenario's; with --random a new one." placeholder:"N"`
	Peers    int           `help:"How many peers. Default: the scenario's; with --random 9." placeholder:"N"`
	For      time.Duration `help:"How much virtual time. Default: the scenario's; with --random 10m." placeholder:"DURATION"`
	Liveness bool          `help:"After the last fault heal only as many peers as can go on alone, and demand that they come to rest while the others stay away."`
	Trace    bool          `help:"Print everything that happens, as it happens."`
	Report   string        `help:"Also write a report with a picture, as one HTML file." placeholder:"FILE"`
	shrinkFlags
}

// Run simulates, tells what happened, and fails if a check does.
func (c *simRunCommand) Run(ctx context.Context, std streams) error {
	scenario, err := c.scenario()
	if err != nil {
		return err
	}
	if c.Report != "" { // before minutes of simulation are lost
		if err := writable(c.Report); err != nil {
			return err
		}
	}
	report.Heading(std.out, scenario)
	result, err := c.simulate(ctx, scenario, std)
	if result == nil || result.Outcome.Steps == 0 {
		return err
	}
	stopped := err
	if err := report.Text(std.out, result); err != nil {
		return err
	}
	if c.Report != "" {
		if err := writeReport(c.Report, result); err != nil {
			return err
		}
		fmt.Fprintf(std.out, "\nThe report is %s.\n", c.Report)
	}
	if errors.Is(stopped, context.Canceled) {
		return fmt.Errorf("interrupted after %s of virtual time: nothing was checked to the end", result.Simulated)
	}
	if stopped != nil {
		return stopped
	}
	if failed := result.Failed(); len(failed) > 0 {
		if err := c.explain(ctx, result, std); err != nil {
			return err
		}
		return fmt.Errorf("%d of %d checks failed", len(failed), len(result.Checks))
	}
	return nil
}

// scenario is what was asked for, with the flags applied.
func (c *simRunCommand) scenario() (*sim.Scenario, error) {
	switch {
	case c.Random == (c.Scenario != ""):
		return nil, errors.New("expected: either a scenario (a file, or a name of `peer sim list`) or --random")
	case c.Peers < 0:
		return nil, fmt.Errorf("%d peers cannot be simulated", c.Peers)
	case c.For < 0:
		return nil, fmt.Errorf("%s cannot be simulated", c.For)
	}
	if c.Random {
		seed, peers, length := rand.Uint64N(1_000_000), 9, 10*time.Minute
		if c.Seed != nil {
			seed = *c.Seed
		}
		if c.Peers != 0 {
			peers = c.Peers
		}
		if c.For != 0 {
			length = c.For
		}
		s, err := sim.Random(seed, peers, length)
		if err != nil {
			return nil, err
		}
		return s, c.mode(s)
	}
	s, err := sim.Open(c.Scenario)
	if err != nil {
		return nil, err
	}
	if err := s.Change(c.Seed, c.Peers, c.For); err != nil {
		return nil, err
	}
	return s, c.mode(s)
}

func (c *simRunCommand) mode(s *sim.Scenario) error {
	if !c.Liveness {
		return nil
	}
	return s.Liveness()
}

// simulate runs it, and shows how far it is.
func (c *simRunCommand) simulate(ctx context.Context, s *sim.Scenario, std streams) (*sim.Result, error) {
	o := sim.Options{}
	if c.Trace {
		o.Trace = std.out
		return s.Run(ctx, o)
	}
	p := newProgress(std.err)
	o.Progress = func(at model.Sample) {
		p.show("%s of %s simulated: %d of %d peers up, %d of %d shards led, %d of %d pods ready",
			at.At.Round(time.Second), s.Config.Length, at.NodesUp, at.Nodes, at.Led, at.Shards, at.Ready, at.Wanted)
	}
	result, err := s.Run(ctx, o)
	p.clear()
	return result, err
}

// progress tells how far something is: on a terminal in one line that changes, elsewhere in a line now and then.
type progress struct {
	to       io.Writer
	terminal bool
	width    int
	last     time.Time
	shown    bool
}

func newProgress(to io.Writer) *progress {
	p := &progress{to: to, last: time.Now()}
	if file, ok := to.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.terminal, p.width = true, 100
		if width, _, err := term.GetSize(int(file.Fd())); err == nil {
			p.width = width
		}
	}
	return p
}

func (p *progress) show(format string, args ...any) {
	pause := 20 * time.Second
	if p.terminal {
		pause = 200 * time.Millisecond
	}
	now := time.Now()
	if now.Sub(p.last) < pause {
		return
	}
	p.last = now
	line := fmt.Sprintf(format, args...)
	if !p.terminal {
		fmt.Fprintln(p.to, line)
		return
	}
	if runes := []rune(line); len(runes) >= p.width {
		line = string(runes[:max(p.width-1, 0)])
	}
	p.shown = true
	fmt.Fprint(p.to, "\r\x1b[K"+line)
}

// clear takes the line away.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}

// writable makes the file that will be written, if there is none.
func writable(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("the report cannot be written: %w", err)
	}
	return file.Close()
}

func writeReport(path string, r *sim.Result) error {
	file, err := os.Create(filepath.Clean(path))
	if err != nil {
		return fmt.Errorf("the report cannot be written: %w", err)
	}
	if err := report.HTML(file, r, Version()); err != nil {
		file.Close()
		return fmt.Errorf("write the report: %w", err)
	}
	return file.Close()
}
