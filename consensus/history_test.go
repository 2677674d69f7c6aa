package consensus_test

import (
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

// A shard to which nobody writes any more drops its history once that is too old, by
// one log entry, and then writes nothing further.
func TestIdleShardsForgetOldHistory(t *testing.T) {
	t.Parallel()
	host := consensustest.NewNetwork().Open(t, "peer-a", t.TempDir(), func(c *consensus.Config) {
		c.History = store.Limits{Age: 500 * time.Millisecond}
	})
	consensustest.Found(t, host)
	if _, err := host.Propose(t.Context(), 1, store.Transaction{Ops: []store.Op{{Key: "k", Value: []byte("v")}}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		view, _ := host.Local(1)
		if view.Oldest() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the history still reaches back to %v", view.Oldest().Time())
		}
		time.Sleep(20 * time.Millisecond)
	}
	view, _ := host.Local(1)
	if _, found := view.Get("k"); !found {
		t.Error("the key went with its history")
	}
	time.Sleep(2500 * time.Millisecond) // two of the sweeps that could write
	if now, _ := host.Local(1); now.Revision() != view.Revision() {
		t.Errorf("an idle shard went from %v to %v", view.Revision(), now.Revision())
	}
}
