//go:build deliberatebugs

package fleet

import (
	"slices"
	"strings"
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
	says   string   // a word of what that says: it must have found this, and not something else
	seed   uint64
	peers  int
	zones  []string
	faults []Fault
	users  Users
	tries  int // further seeds that are tried as long as it is not found: what is under way when a fault strikes differs from run to run
	calm   time.Duration
}{
	// Only a write that is under way when its leader goes, and lost with it, shows this one: many users, and a line that breaks often.
	{
		bug: bugs.AcknowledgeUnknown, found: []string{"durable", "linearizable", "reads", "reliable", "resumable"},
		seed: 1, tries: 9, peers: 3, faults: kinds("flap"), users: Users{Writers: 10, Pause: 100 * time.Millisecond},
	},
	{bug: bugs.StaleReads, found: []string{"linearizable", "reads", "monotonic"}, seed: 1, peers: 3, faults: kinds("split")},
	{bug: bugs.EndlessLease, found: []string{"linearizable", "reads", "monotonic"}, seed: 1, tries: 4, peers: 3, faults: kinds("split")},
	{bug: bugs.SkipAtBoundary, found: []string{"reliable", "resumable"}, seed: 1, peers: 3},
	{bug: bugs.ForgetEntry, found: []string{"replicas"}, seed: 1, peers: 3},
	// One crash of 16 s: replicas are made anew elsewhere 5 s after their peer was judged dead. Who looks twice a second may miss a group that
	// is one voter short for less: each seed finds it about every other time.
	{bug: bugs.RemoveFirst, found: []string{"voters"}, says: "has 2 voters", seed: 5, tries: 9, peers: 4, faults: kinds("crash")},
	{bug: bugs.KeepRemoved, found: []string{"convergence"}, seed: 5, peers: 4, faults: kinds("crash")},
	// One machine is cut off for 13 s, and its pods are replaced meanwhile. In 1 of 40 runs none of them holds room that nobody gives back.
	{bug: bugs.KeepClaims, found: []string{"claims"}, seed: 16, tries: 3, peers: 3, faults: kinds("isolate"), calm: 20 * time.Second},
	// The power of the zone with three of the seven machines is lost for 16 s.
	{bug: bugs.NoBrake, found: []string{"brake"}, seed: 3, peers: 7, zones: []string{"a", "b", "c"}, faults: kinds("zone")},
}

// TestDeliberateBugs makes one mistake at a time, once the fleet stands; the checker that is named beside it must find it.
func TestDeliberateBugs(t *testing.T) {
	for _, test := range deliberate {
		t.Run(string(test.bug), func(t *testing.T) {
			defer bugs.Stop()
			found := func(v Violation) bool {
				return slices.Contains(test.found, v.Checker) && strings.Contains(v.Message, test.says)
			}
			plan := Plan{
				Seed: test.seed, Peers: test.peers, Zones: test.zones, Workload: Workload{Namespaces: 2, Deployment: 3, StatefulSet: 2},
				Faults: test.faults, Users: test.users, For: 15 * time.Second, Settle: 20 * time.Second, Calm: test.calm, ReplaceAfter: 5 * time.Second,
				Enough: found,
			}
			if slices.Contains(test.found, "convergence") {
				// Anything might keep a fleet from coming to rest: without the mistake it must, under the same faults.
				play(t, plan)
			}
			plan.Settled = func() { bugs.Make(test.bug) }
			report, err := try(t, plan)
			for tried := 0; tried < test.tries && !slices.ContainsFunc(report.Violations, found); tried++ {
				bugs.Stop()
				plan.Seed++
				report, err = try(t, plan)
			}
			if !slices.ContainsFunc(report.Violations, found) {
				t.Errorf("not found by %v; found were %v, and %v", test.found, report.Violations, err)
			}
			for _, v := range report.Violations[:min(3, len(report.Violations))] {
				t.Log(v)
			}
		})
	}
}
