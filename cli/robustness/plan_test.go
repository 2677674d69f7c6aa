package main

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPlans: the same seed gives the same faults; no peer has two at once; what is called a minority is one; all ends in time.
func TestPlans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		peers := rapid.IntRange(2, 7).Draw(t, "peers")
		kinds := rapid.SliceOfNDistinct(rapid.SampledFrom(faultNames()), 1, len(faultKinds), rapid.ID[string]).Draw(t, "kinds")
		during := time.Duration(rapid.IntRange(10, 300).Draw(t, "seconds")) * time.Second
		draw := func() []planned { return plan(rand.New(rand.NewPCG(seed, 1)), kinds, peers, during) }
		faults := draw()
		if again := draw(); !reflect.DeepEqual(faults, again) {
			t.Fatalf("one seed, two plans: %v and %v", faults, again)
		}
		if len(faults) == 0 {
			t.Fatal("nothing happens")
		}
		for i, p := range faults {
			if p.end > during || p.end <= p.begin || len(p.peers) == 0 {
				t.Fatalf("fault %+v of a plan of %s", p, during)
			}
			for _, other := range faults[:i] {
				overlap := p.begin < other.end && other.begin < p.end
				if overlap && slices.ContainsFunc(p.peers, func(peer int) bool { return slices.Contains(other.peers, peer) }) {
					t.Fatalf("%+v and %+v hurt the same peer at once", p, other)
				}
				if overlap && (p.minority || other.minority) {
					t.Fatalf("%+v and %+v overlap and are not a minority", p, other)
				}
			}
		}
	})
}
