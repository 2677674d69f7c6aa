package consensus_test

import (
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// TestClosingWhatIsPassedWritesNothing: whoever wants a shard to be at a revision makes it write only if it is not there, also where it has
// no replica to look at.
func TestClosingWhatIsPassedWritesNothing(t *testing.T) {
	network := consensustest.NewNetwork()
	change := func(c *consensus.Config) { c.DataShards = 1 }
	with := network.Open(t, "a", t.TempDir(), change)
	consensustest.Found(t, with)
	without := network.Open(t, "b", t.TempDir(), change)
	at := mustPut(t, with, 1, "n", "0")
	written := consensus.Applied(with, 1)
	for _, h := range []*consensus.Host{with, without} {
		if reached, err := h.Close(within(t, patience), 1, at); err != nil || reached != at {
			t.Errorf("closed up to %v, %v; it was at %v", reached, err, at)
		}
	}
	if now := consensus.Applied(with, 1); now != written {
		t.Errorf("%d entries were written", now-written)
	}
	if reached, err := without.Close(within(t, patience), 1, at+1000); err != nil || reached < at+1000 {
		t.Errorf("closed up to %v, %v; %v was asked for", reached, err, at+1000)
	}
	if now := consensus.Applied(with, 1); now != written+1 {
		t.Errorf("%d entries were written, want 1", now-written)
	}
}
