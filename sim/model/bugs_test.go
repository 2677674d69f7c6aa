package model

import (
	"slices"
	"testing"
	"time"
)

// deliberateBugs are all of them, each with the checker that must find it, and the seed and the story in which it does. sim/README.md has
// the same table for people.
var deliberateBugs = []struct {
	bug, checker string
	seed         uint64
	story        func(*Config)
}{
	{bugCommitAlone, checkerReplicas, 1, storeUnder(Cut, Part, Crash)},
	{bugTwoVotes, checkerReplicas, 4, storeUnder(SlowDisk, Part, Crash)},
	{bugReplicaDrifts, checkerReplicas, 1, storeUnder(Crash)},
	{bugHastyRepair, checkerReplicas, 1, twoDieForGood},
	{bugStaleRead, "linearizable", 4, leaderCutAgainAndAgain},
	{bugOldRevision, checkerRevisions, 1, storeUnder(Part)},
	{bugEventSkipped, "resumable", 5, storeUnder(Cut, Crash)},
	{bugBoundarySkipped, "reliable", 1, storeUnder(Crash)},
	{bugNoOneMoment, "reads", 7, storeUnder(Crash)},
	{bugAnyClock, checkerClock, 1, storeUnder(Jump)},
	{bugFenceSecondLate, checkerFencing, 2, threeCutInTurn},
	{bugFenceLate, checkerIdentity, 1, threeCutInTurn},
	{bugNoFencingTime, checkerIdentity, 3, threeCutInTurn},
	{bugUnfenceTooEarly, checkerIdentity, 1, threeCutInTurn},
	{bugEvictUnread, checkerIdentity, 20, backUnheard},
	{bugBrokenLease, checkerIdentity, 1, faultsOf(Slow, Jump)},
	{bugReadyUnheard, checkerCalm, 1, faultsOf(Slow)},
	{bugRestartKills, checkerRestarts, 1, faultsOf(Kill)},
	{bugClaimKept, checkerClaims, 1, faultsOf(Crash, Freeze, Cut)},
	{bugEverythingFits, checkerCapacity, 1, tooSmall},
	{bugEndpointsKept, checkerVIP, 1, oneDies},
	{bugNoEvictions, checkerConvergence, 1, oneDies},
	{bugActsOnEvents, checkerOperators, 1, operated},
	{bugNoBrake, checkerBrake, 1, zoneCut},
}

// TestCheckersCatchDeliberateBugs switches on one bug at a time and demands that the named checker finds it, with a seed that is good
// without the bug.
func TestCheckersCatchDeliberateBugs(t *testing.T) {
	for _, c := range deliberateBugs {
		t.Run(c.bug, func(t *testing.T) {
			t.Parallel()
			cfg := swarm(c.seed)
			cfg.Random, cfg.Length = Swarm{}, 75*time.Second
			c.story(&cfg)
			good, err := Run(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if len(good.Violations) > 0 {
				t.Fatalf("without the bug: %v", good.Violations)
			}
			cfg.bug = c.bug
			bad, err := Run(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(bad.Violations, func(v Violation) bool { return v.Checker == c.checker }) {
				t.Errorf("seed %d: the checker %q has found nothing; all that was found: %v", c.seed, c.checker, bad.Violations)
			}
		})
	}
}

// faultsOf is a cluster of nine under twelve faults of some kinds.
func faultsOf(kinds ...FaultKind) func(*Config) {
	return func(c *Config) {
		c.Random = Swarm{Faults: 12, From: 5 * time.Second, Until: 50 * time.Second, Kinds: kinds}
		c.Length = 110 * time.Second
	}
}

// storeUnder is the same without pods: what is looked at is the store and its clients.
func storeUnder(kinds ...FaultKind) func(*Config) {
	return func(c *Config) {
		faultsOf(kinds...)(c)
		c.Workloads = nil
	}
}

// operated is a cluster without pods in which operators work under faults.
func operated(c *Config) {
	storeUnder(Crash, Cut, Lose)(c)
	c.Operators, c.Length = true, 130*time.Second
}

func oneDies(c *Config) { c.Faults = []Fault{{At: 20 * time.Second, Kind: Crash, Target: "n8"}} }

func zoneCut(c *Config) {
	c.Faults = []Fault{{At: 20 * time.Second, Kind: Cut, Target: "zone c", For: 20 * time.Second}}
}

// twoDieForGood is a cluster whose shards are repaired soon, over connections that are slow and lossy.
func twoDieForGood(c *Config) {
	c.ReplaceAfter = 5 * time.Second
	c.Random = Swarm{Faults: 6, From: 10 * time.Second, Until: 20 * time.Second, Kinds: []FaultKind{SlowDisk, Delay, Lose}}
	c.Faults = []Fault{{At: 10 * time.Second, Kind: Crash, Target: "leader 1"}, {At: 25 * time.Second, Kind: Crash, Target: "n8"}}
}

// leaderCutAgainAndAgain is a cluster of three whose clients read through a leader that others have replaced.
func leaderCutAgainAndAgain(c *Config) {
	c.Nodes, c.Shards, c.Workloads, c.ReadyWithin, c.Length = 3, 1, nil, 0, 120*time.Second
	for i := range 30 {
		c.Faults = append(c.Faults, Fault{At: time.Duration(5000+3500*i) * time.Millisecond, Kind: Cut, Target: "leader 1", For: 1800 * time.Millisecond})
	}
}

// backUnheard is a cluster in which a node is lost and comes back, and those who would replace its pods hear only of the former: they have
// lost the meta leader meanwhile, and most voters have not.
func backUnheard(c *Config) {
	c.Nodes, c.Shards, c.ReadyWithin, c.Length = 6, 2, 0, 60*time.Second
	c.Allocatable = list("16", "32Gi", "110")
	c.Faults = []Fault{
		{At: 15 * time.Second, Kind: Cut, Target: "n6", For: 9 * time.Second},
		{At: 22 * time.Second, Kind: Part, Target: "leader 0", Other: "leader 1", For: 20 * time.Second},
		{At: 22 * time.Second, Kind: Part, Target: "leader 0", Other: "leader 2", For: 20 * time.Second},
	}
}

// tooSmall is a cluster that is asked for more than it has.
func tooSmall(c *Config) { c.Allocatable, c.ReadyWithin = list("1700m", "8Gi", "110"), 0 }

// threeCutInTurn is a cluster of three with a database, whose nodes are cut off one after the other, for long enough that pods are replaced.
func threeCutInTurn(c *Config) {
	c.Nodes, c.Shards, c.Length = 3, 2, 145*time.Second
	c.Allocatable = list("16", "32Gi", "110")
	for i := range 6 {
		at, name := time.Duration(10+22*i)*time.Second, "n"+string(rune('1'+i%3))
		c.Faults = append(c.Faults, Fault{At: at, Kind: Cut, Target: name, For: 18 * time.Second})
	}
}
