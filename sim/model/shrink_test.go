package model_test

import (
	"strings"
	"testing"

	"shoal/sim"
	"shoal/sim/model"
)

// TestShrinking plants a bug that several faults show, shrinks the scenario, and demands that its text, read again, shows the same: with
// fewer faults, fewer machines, in less time.
func TestShrinking(t *testing.T) {
	for _, c := range []struct {
		bug, checker string
		faults       int // at most so many are left, with their ends
		scenario     string
	}{
		{model.BugNoFencingTime, "identity", 2, `
seed 3
nodes 3 zones 3 cpu 16 memory 32Gi pods 110
shards 2
deployment web replicas 24 cpu 250m memory 128Mi
deployment shop replicas 12 cpu 500m memory 256Mi
statefulset db replicas 3 cpu 500m memory 1Gi
at 10s cut n1 for 18s
at 32s cut n2 for 18s
at 54s cut n3 for 18s
at 76s cut n1 for 18s
at 98s cut n2 for 18s
at 120s cut n3 for 18s
run 145s
`},
		{model.BugNoEvictions, "convergence", 1, `
seed 3
nodes 9 zones 3
shards 3
deployment web replicas 9 cpu 250m memory 128Mi
deployment shop replicas 9 cpu 250m memory 128Mi
random 8 faults from 10s until 60s
at 70s crash n4
run 150s
expect ready within 30s
`},
	} {
		t.Run(c.checker, func(t *testing.T) {
			s, err := sim.Parse(strings.NewReader(c.scenario), "")
			if err != nil {
				t.Fatal(err)
			}
			if good, err := s.Run(t.Context(), sim.Options{}); err != nil || len(good.Failed()) > 0 {
				t.Fatalf("without the bug: %v, %v", err, good.Failed())
			}
			s.Config = model.WithBug(s.Config, c.bug)
			bad, err := s.Run(t.Context(), sim.Options{})
			if err != nil {
				t.Fatal(err)
			}
			found, is := bad.Violated()
			if !is || found.Checker != c.checker {
				t.Fatalf("the bug shows as %v", bad.Outcome.Violations)
			}
			told := 0
			shrunk := s.Shrink(t.Context(), found, sim.Shrinking{Progress: func(int, *sim.Scenario) { told++ }})
			text := shrunk.Scenario.Text()
			t.Logf("%d attempts, %s\n%s", shrunk.Attempts, shrunk.Describe(s, "test"), text)
			if told != shrunk.Attempts || shrunk.Attempts > 400 {
				t.Errorf("%d attempts, %d of them told", shrunk.Attempts, told)
			}
			again, err := sim.Parse(strings.NewReader(text), "")
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(text, "\nat "); n > 2*c.faults || again.Config.Length >= s.Config.Length {
				t.Errorf("%d lines of faults, %d nodes and %s are left", n, again.Config.Nodes, again.Config.Length)
			}
			again.Config = model.WithBug(again.Config, c.bug)
			replayed, err := again.Run(t.Context(), sim.Options{})
			if got, is := replayed.Violated(); err != nil || !is || got != shrunk.Violation {
				t.Errorf("replayed it shows %v (%v), not %v", got, err, shrunk.Violation)
			}
		})
	}
}
