//go:build deliberatebugs

package fleet

import (
	"slices"
	"testing"
	"time"

	"shoal/consensus/bugs"
)

// kinds are the faults with the given names.
func kinds(names ...string) []Fault {
	return slices.DeleteFunc(slices.Clone(Faults), func(f Fault) bool { return !slices.Contains(names, f.Name) })
}

// deliberate is the table of deliberate bugs: what is wrong, who must find it, and under what.
var deliberate = []struct {
	bug    bugs.Bug
	found  []string // by one of these checkers
	seed   uint64
	peers  int
	zones  []string
	faults []Fault
}{
	{bugs.AcknowledgeUnknown, []string{"durable", "linearizable"}, 1, 3, nil, kinds("kill", "isolate")},
	{bugs.StaleReads, []string{"linearizable", "reads", "monotonic"}, 1, 3, nil, kinds("split")},
	{bugs.SkipAtBoundary, []string{"reliable", "resumable"}, 1, 3, nil, nil},
	{bugs.ForgetEntry, []string{"replicas"}, 1, 3, nil, nil},
	{bugs.RemoveFirst, []string{"voters"}, 1, 4, nil, kinds("crash")},
	{bugs.KeepRemoved, []string{"convergence"}, 1, 4, nil, kinds("crash")},
	{bugs.KeepClaims, []string{"claims"}, 1, 3, nil, kinds("isolate")},
	{bugs.NoBrake, []string{"brake"}, 1, 7, []string{"a", "b", "c"}, kinds("zone")},
}

// TestDeliberateBugs makes one mistake at a time, once the fleet stands; the checker that is named beside it must find it.
func TestDeliberateBugs(t *testing.T) {
	for _, test := range deliberate {
		t.Run(string(test.bug), func(t *testing.T) {
			defer bugs.Stop()
			report, err := try(t, Plan{
				Seed: test.seed, Peers: test.peers, Zones: test.zones, Workload: Workload{Namespaces: 2, Deployment: 3, StatefulSet: 2},
				Faults: test.faults, For: 15 * time.Second, Settle: 20 * time.Second, ReplaceAfter: 5 * time.Second,
				Settled: func() { bugs.Make(test.bug) },
			})
			if !slices.ContainsFunc(report.Violations, func(v Violation) bool { return slices.Contains(test.found, v.Checker) }) {
				t.Errorf("not found by %v; found were %v, and %v", test.found, report.Violations, err)
			}
			for _, v := range report.Violations[:min(3, len(report.Violations))] {
				t.Log(v)
			}
		})
	}
}
