package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/sim"
	"shoal/sim/model"
	"shoal/sim/report"
)

// shrinkFlags are how much is done about a failure.
type shrinkFlags struct {
	Shrink time.Duration `help:"For how long to look for a shorter scenario that fails the same way; 0s for not at all." default:"1m" placeholder:"DURATION"`
	Folder string        `help:"Where failing scenarios are saved." default:"." placeholder:"FOLDER" type:"path"`
}

// explain makes a scenario that violates a promise as short as it can be, saves it, and says how to run it again.
func (f shrinkFlags) explain(ctx context.Context, result *sim.Result, std streams) error {
	found, is := result.Violated()
	s := result.Scenario
	fmt.Fprintf(std.out, "\nFailed with seed %d, version %s.\n", s.Config.Seed, Version())
	if !is {
		return nil
	}
	shrunk := sim.Shrunk{Scenario: s, Violation: found}
	if f.Shrink > 0 {
		shrunk = f.shrink(ctx, s, found, std)
		fmt.Fprintf(std.out, "\nThe shortest scenario found that shows it, in %d attempts:\n\n%s\n", shrunk.Attempts, indent(shrunk.Scenario.Text()))
		fmt.Fprintf(std.out, "  %s: %s: %s\n", shrunk.Violation.At.Round(time.Millisecond), shrunk.Violation.Checker, shrunk.Violation.Message)
	}
	path, err := f.save(s, shrunk)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "\nRun it again:\n\n    peer sim run %s\n", path)
	return err
}

func (f shrinkFlags) shrink(ctx context.Context, s *sim.Scenario, found model.Violation, std streams) sim.Shrunk {
	ctx, cancel := context.WithTimeout(ctx, f.Shrink)
	defer cancel()
	p := newProgress(std.err)
	defer p.clear()
	return s.Shrink(ctx, found, sim.Shrinking{Progress: func(attempts int, shortest *sim.Scenario) {
		p.show("looking for a shorter scenario: %d attempts, %s", attempts, report.Describe(shortest))
	}})
}

// save writes a shrunk scenario into the folder, under the name and seed of what it came from.
func (f shrinkFlags) save(s *sim.Scenario, shrunk sim.Shrunk) (string, error) {
	name := s.Name
	if seed := fmt.Sprintf("-%d", s.Config.Seed); !strings.Contains(name, seed) {
		name += "-seed" + seed
	}
	name = strings.TrimSuffix(name, "-"+shrunk.Violation.Checker) + "-" + shrunk.Violation.Checker + ".txt"
	path := filepath.Join(f.Folder, name)
	kept := *shrunk.Scenario
	kept.Title = shrunk.Describe(s, Version())
	if err := os.MkdirAll(f.Folder, 0o755); err != nil {
		return "", fmt.Errorf("the failing scenario cannot be saved: %w", err)
	}
	if err := os.WriteFile(path, []byte(kept.Text()), 0o644); err != nil {
		return "", fmt.Errorf("the failing scenario cannot be saved: %w", err)
	}
	return path, nil
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}
