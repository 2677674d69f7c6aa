package model

import (
	"slices"
	"testing"
	"time"
)

// TestCheckersCatchDeliberateBugs switches on one bug at a time and demands that the named checker finds it, with a seed that is good
// without the bug.
func TestCheckersCatchDeliberateBugs(t *testing.T) {
	fault := func(at time.Duration, kind FaultKind, target string) Fault { return Fault{At: at, Kind: kind, Target: target} }
	for _, c := range []struct {
		bug, checker string
		seed         uint64
		change       func(*Config)
	}{
		{bugClaimKept, checkerClaims, 1, func(*Config) {}},
		{bugFenceLate, checkerIdentity, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, everyNodeCut(c.Nodes) }},
		{bugNoFencingTime, checkerIdentity, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, everyNodeCut(c.Nodes) }},
		{bugUnfenceTooEarly, checkerIdentity, 3, func(c *Config) { c.Random, c.Faults = Swarm{}, everyNodeCut(c.Nodes) }},
		{bugEndpointsKept, checkerVIP, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Crash, "n8")} }},
		{bugNoEvictions, checkerConvergence, 1, func(c *Config) { c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Crash, "n8")} }},
		{bugNoBrake, checkerBrake, 1, func(c *Config) {
			c.Random, c.Faults = Swarm{}, []Fault{fault(20*time.Second, Cut, "zone c"), fault(40*time.Second, Heal, "zone c")}
		}},
		{bugEverythingFits, checkerCapacity, 1, func(c *Config) { c.Allocatable = list("1700m", "8Gi", "110") }},
	} {
		t.Run(c.bug, func(t *testing.T) {
			cfg := swarm(c.seed)
			c.change(&cfg)
			good, err := Run(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if c.bug != bugEverythingFits && len(good.Violations) > 0 {
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

// everyNodeCut cuts one node after the other off, each for long enough that its pods are replaced.
func everyNodeCut(nodes int) []Fault {
	var faults []Fault
	for i := range nodes {
		at := time.Duration(10+17*i) * time.Second
		name := "n" + string(rune('1'+i))
		faults = append(faults, Fault{At: at, Kind: Cut, Target: name}, Fault{At: at + 16*time.Second, Kind: Heal, Target: name})
	}
	return faults
}
