package model

import (
	"testing"
	"time"
)

// liveness is a swarm that ends with a core of few.
func liveness(seed uint64, core string) Config {
	cfg := swarm(seed)
	cfg.Faults = []Fault{{At: 72 * time.Second, Kind: Core, Target: core}}
	cfg.Length, cfg.ReadyWithin = 150*time.Second, time.Minute
	return cfg
}

// TestCoresComeToRest heals as few machines as can go on alone, after all kinds of faults on any machines. SHOAL_SIM_SEEDS=FROM-TO chooses seeds.
func TestCoresComeToRest(t *testing.T) {
	t.Parallel()
	from, to := seeds(t, 1, 6)
	for seed := from; seed <= to; seed++ {
		outcome, err := Run(liveness(seed, "quorum"))
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range outcome.Violations {
			t.Errorf("seed %d: %s", seed, violation)
		}
		if outcome.Settled < 0 {
			t.Errorf("seed %d: the core was never as desired", seed)
		}
	}
}

// TestTooSmallACoreDoesNotComeToRest heals fewer: a mode in which nothing can fail would prove nothing.
func TestTooSmallACoreDoesNotComeToRest(t *testing.T) {
	t.Parallel()
	outcome, err := Run(liveness(1, "n1,n4"))
	if err != nil {
		t.Fatal(err)
	}
	if len(outcome.Violations) == 0 || outcome.Violations[0].Checker != checkerConvergence {
		t.Errorf("two machines of nine go on alone: %v", outcome.Violations)
	}
}

// TestQuorumsAreEnough draws cores, and demands that each can go on and that none of its machines can be spared.
func TestQuorumsAreEnough(t *testing.T) {
	for seed := range uint64(20) {
		m, err := newModel(swarm(seed))
		if err != nil {
			t.Fatal(err)
		}
		core := m.quorum()
		if !m.canGoOn(core) || len(core) == len(m.nodes) {
			t.Fatalf("seed %d: a core of %d of %d is not enough, or everybody", seed, len(core), len(m.nodes))
		}
		for i := range core {
			if less := append(append([]*node{}, core[:i]...), core[i+1:]...); m.canGoOn(less) {
				t.Errorf("seed %d: %s can be spared", seed, core[i].name)
			}
		}
	}
}
