package main

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"shoal/sim/history"
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

// TestInvalidRuns: a run in which clients did too little is not valid, whatever the checkers say.
func TestInvalidRuns(t *testing.T) {
	cfg := Config{MinRate: 10, MinAnswered: 0.5}
	run := func(operations int, answered int, minority bool) *history.History {
		h := &history.History{Faults: []history.Fault{{Begin: 0, End: time.Hour, Minority: minority}}}
		for i := range operations {
			op := history.Operation{Kind: history.Get, Invoke: time.Duration(i) * 10 * time.Second / time.Duration(operations), Outcome: history.Unknown}
			if i < answered {
				op.Outcome = history.OK
			}
			op.Return = op.Invoke + time.Millisecond
			h.Operations = append(h.Operations, op)
		}
		return h
	}
	for _, test := range []struct {
		name    string
		history *history.History
		valid   bool
	}{
		{"enough", run(200, 150, true), true},
		{"too few", run(50, 50, true), false},
		{"too few answers while a minority is hurt", run(200, 50, true), false},
		{"few answers while a majority is hurt", run(200, 50, false), true},
	} {
		if err := measure(test.history).invalid(cfg); (err == nil) != test.valid {
			t.Errorf("%s: %v (%s)", test.name, err, measure(test.history))
		}
	}
}
