package consensus_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
)

// A shard shrinks to one voter while reads are under way, and gets a non-voting copy again. The copy must fill, although a read that the
// removed voter was to confirm may pend in raft for ever.
func TestACopyFillsAfterAShrinkUnderReads(t *testing.T) {
	a, b := readUnderWay(t)
	for round := range 20 {
		place(t, a, 1, voters("a", "b")...)
		settled(t, a, 1, voters("a", "b")...)
		place(t, a, 1, voters("a")...)
		settled(t, a, 1, voters("a")...)
		text := fmt.Sprintf("round %d", round)
		place(t, a, 1, shardmap.Want{Peer: "a", Voter: true}, shardmap.Want{Peer: "b"})
		mustPut(t, a, 1, "k", text)
		eventually(t, "the copy fills in "+text, func() error {
			view, ok := b.Local(1)
			if !ok {
				return fmt.Errorf("not ready: %+v", status(b, 1))
			}
			if kv, _ := view.Get("k"); string(kv.Value) != text {
				return fmt.Errorf("it holds %q", kv.Value)
			}
			return nil
		})
	}
}

// The same where the shard is to move: the new voter has to fill before it may vote, and the deaf leader's replica is not assigned any more
// when it is started anew.
func TestAShardMovesAfterAShrinkUnderReads(t *testing.T) {
	a, b := readUnderWay(t)
	for round := range 3 {
		place(t, a, 1, voters("a", "b")...)
		settled(t, a, 1, voters("a", "b")...)
		place(t, a, 1, voters("a")...)
		settled(t, a, 1, voters("a")...)
		text := fmt.Sprintf("round %d", round)
		mustPut(t, a, 1, "k", text)
		place(t, b, 1, voters("b")...)
		settled(t, b, 1, voters("b")...)
		if kv, _, _, err := b.Get(t.Context(), 1, "k", consensus.Linearizable); err != nil || string(kv.Value) != text {
			t.Fatalf("after the move in %s: %q, %v", text, kv.Value, err)
		}
		place(t, a, 1, voters("a", "b")...)
		settled(t, b, 1, voters("a", "b")...)
		place(t, a, 1, voters("a")...)
		settled(t, a, 1, voters("a")...)
	}
}

// readUnderWay opens two hosts, the first of which holds everything and is read all the time.
func readUnderWay(t *testing.T) (a, b *consensus.Host) {
	t.Helper()
	network := consensustest.NewNetwork()
	a = network.Open(t, "a", t.TempDir(), nil)
	consensustest.Found(t, a)
	b = network.Open(t, "b", t.TempDir(), nil)
	ctx, stop := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	t.Cleanup(func() {
		stop()
		readers.Wait()
	})
	for range 64 {
		readers.Go(func() {
			for ctx.Err() == nil {
				bounded, cancel := context.WithTimeout(ctx, time.Second)
				_, _, _, _ = a.Get(bounded, 1, "k", consensus.Linearizable) // those that pend for ever fail, which is the point
				cancel()
			}
		})
	}
	return a, b
}
