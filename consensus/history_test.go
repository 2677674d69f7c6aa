package consensus_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
	"shoal/internal/polling"
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
	polling.Until(t, 20*time.Millisecond, 20*time.Second, "the history is gone", func(context.Context) error {
		if view, _ := host.Local(1); view.Oldest() != 0 {
			return fmt.Errorf("it reaches back to %v", view.Oldest().Time())
		}
		return nil
	})
	view, _ := host.Local(1)
	if _, found := view.Get("k"); !found {
		t.Error("the key went with its history")
	}
	// Two of the sweeps that could write come in this time.
	polling.Throughout(t, 100*time.Millisecond, 2500*time.Millisecond, "an idle shard stays", func() error {
		if now, _ := host.Local(1); now.Revision() != view.Revision() {
			return fmt.Errorf("it went from %v to %v", view.Revision(), now.Revision())
		}
		return nil
	})
}
