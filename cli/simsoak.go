package cli

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"shoal/sim"
	"shoal/sim/report"
)

// simSoakCommand is `peer sim soak`.
type simSoakCommand struct {
	For    time.Duration `help:"How long, by the real clock." default:"1h" placeholder:"DURATION"`
	Seed   *uint64       `help:"The first seed; the next ones follow. Default: a new one." placeholder:"N"`
	Seeds  int           `help:"Stop after so many seeds." placeholder:"N"`
	Shrink time.Duration `help:"For how long to look for a shorter scenario that fails the same way." default:"1m" placeholder:"DURATION"`
	Folder string        `help:"Where failing scenarios and their reports are saved." default:"soak-failures" placeholder:"FOLDER" type:"path"`
}

// Run simulates seed after seed, saves what fails, and says how much was simulated. Ctrl-C ends it as the time does.
func (c *simSoakCommand) Run(ctx context.Context, std streams) error {
	if c.For <= 0 || c.Seeds < 0 {
		return fmt.Errorf("nothing is simulated in %s with %d seeds", c.For, c.Seeds)
	}
	seed := rand.Uint64N(1_000_000) * 1000
	if c.Seed != nil {
		seed = *c.Seed
	}
	fmt.Fprintf(std.out, "Simulating clusters of 3 to 12 peers under random faults, from seed %d, for %s. Failures go to %s. Ctrl-C ends it.\n", seed, c.For, c.Folder)
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, c.For)
	defer cancel()
	p := newProgress(std.err)
	var broken error
	done, err := sim.Soak{
		Seed: seed, Seeds: c.Seeds, Workers: runtime.GOMAXPROCS(0),
		Progress: func(s sim.Soaked) {
			p.show("%s: %d seeds, %s of virtual time, %d failed", time.Since(begun).Round(time.Second), s.Seeds, s.Virtual, s.Failures)
		},
		Failed: func(r *sim.Result) {
			p.clear()
			if err := c.keep(limited, r, std); err != nil && broken == nil {
				broken = err
				cancel()
			}
		},
	}.Run(limited)
	p.clear()
	fmt.Fprintf(std.out, "%d seeds (%d to %d), %s of virtual time in %s: %d failed\n", done.Seeds, seed, max(done.Next, seed+1)-1, done.Virtual,
		time.Since(begun).Round(time.Second), done.Failures)
	switch {
	case broken != nil:
		return broken
	case err != nil:
		return err
	case done.Failures > 0:
		return fmt.Errorf("%d of %d seeds broke a promise; run the scenarios in %s again with `peer sim run`", done.Failures, done.Seeds, c.Folder)
	}
	return nil
}

// keep tells of a failure in a few lines, and saves its scenario, made short, beside its report.
func (c *simSoakCommand) keep(ctx context.Context, r *sim.Result, std streams) error {
	s := r.Scenario
	fmt.Fprintf(std.out, "seed %d: %s\n", s.Config.Seed, report.Describe(s))
	found, is := r.Violated()
	if !is {
		for _, check := range r.Failed() {
			fmt.Fprintf(std.out, "  ✗ %s, but: %v\n", check.Says, check.Found)
		}
		return nil
	}
	fmt.Fprintf(std.out, "  ✗ %s\n", found)
	f := shrinkFlags{Shrink: c.Shrink, Folder: c.Folder}
	shrunk := sim.Shrunk{Scenario: s, Violation: found}
	if c.Shrink > 0 {
		shrunk = f.shrink(ctx, s, found, std)
	}
	path, err := f.save(s, shrunk)
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "  peer sim run %s\n", path)
	return writeReport(path+".html", r)
}
