package model

import (
	"slices"
	"testing"
	"time"
)

// TestCheckersCatchDeliberateBugs switches on one bug at a time and demands that the named checker finds it, with a seed that is good
// without the bug.
func TestCheckersCatchDeliberateBugs(t *testing.T) {
	fault := func(at time.Duration, kind FaultKind, target string) Fault {
		return Fault{At: at, Kind: kind, Target: target}
	}
	for _, c := range []struct {
		bug, checker string
		seed         uint64
		change       func(*Config)
	}{
		{bugClaimKept, checkerClaims, 1, func(*Config) {}},
		{bugFenceLate, checkerIdentity, 2, threeCutInTurn},
		{bugNoFencingTime, checkerIdentity, 13, threeCutInTurn},
		{bugUnfenceTooEarly, checkerIdentity, 3, threeCutInTurn},
		{bugEndpointsKept, checkerVIP, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Crash, "n8")} }},
		{bugNoEvictions, checkerConvergence, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Crash, "n8")} }},
		{bugNoBrake, checkerBrake, 1, func(c *Config) {
			c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Cut, "zone c"), fault(40*time.Second, Heal, "zone c")}
		}},
		{bugEverythingFits, checkerCapacity, 1, func(c *Config) { c.Allocatable, c.ReadyWithin = list("1700m", "8Gi", "110"), 0 }},
	} {
		t.Run(c.bug, func(t *testing.T) {
			cfg := swarm(c.seed)
			cfg.Length = 150 * time.Second
			c.change(&cfg)
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

// threeCutInTurn is a cluster of three with a database, whose nodes are cut off one after the other, for long enough that pods are replaced.
func threeCutInTurn(c *Config) {
	c.Nodes, c.Shards, c.Random, c.Faults = 3, 2, Swarm{}, nil
	c.Allocatable = list("16", "32Gi", "110")
	for i := range 6 {
		at, name := time.Duration(10+22*i)*time.Second, "n"+string(rune('1'+i%3))
		c.Faults = append(c.Faults, Fault{At: at, Kind: Cut, Target: name}, Fault{At: at + 18*time.Second, Kind: Heal, Target: name})
	}
}
