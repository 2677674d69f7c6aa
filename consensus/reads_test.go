package consensus_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
)

// TestSharedReadsSeeWhatWasAcknowledgedBefore: however many reads share a confirmation, none may use one that was asked for before it began.
func TestSharedReadsSeeWhatWasAcknowledgedBefore(t *testing.T) {
	network := consensustest.NewNetwork()
	var hosts []*consensus.Host
	var want []shardmap.Want
	for i := range 3 {
		peer := fmt.Sprint("peer", i)
		hosts = append(hosts, network.Open(t, peer, t.TempDir(), nil))
		want = append(want, shardmap.Want{Peer: peer, Voter: true})
	}
	consensustest.Found(t, hosts[0])
	for shard := range uint64(2) {
		consensustest.Place(t, hosts[0], shard, want...)
	}
	ctx := within(t, patience)
	var clients sync.WaitGroup
	for client := range 24 {
		clients.Go(func() {
			key := fmt.Sprint("/k/", client)
			for n := range 30 {
				value := fmt.Sprint(n)
				if _, err := hosts[client%3].Propose(ctx, 1, put(key, value)); err != nil {
					t.Error(err)
					return
				}
				// Another host's replica may not have applied it yet; a linearizable read waits for it.
				kv, _, _, err := hosts[(client+1)%3].Get(ctx, 1, key, consensus.Linearizable)
				if err != nil || string(kv.Value) != value {
					t.Errorf("%s is %q, %v; %s was acknowledged before the read", key, kv.Value, err, value)
					return
				}
			}
		})
	}
	clients.Wait()
}

// TestAReadThatGivesUpLeavesTheOthers: one of several that share a confirmation ends, the others get it.
func TestAReadThatGivesUpLeavesTheOthers(t *testing.T) {
	h := consensustest.NewHost(t)
	mustPut(t, h, 1, "k", "v")
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if i%2 == 0 {
				h.Get(gone, 1, "k", consensus.Linearizable) //nolint:errcheck // it has given up
			} else if kv, _, _, err := h.Get(within(t, patience), 1, "k", consensus.Linearizable); err != nil || string(kv.Value) != "v" {
				t.Errorf("%q, %v", kv.Value, err)
			}
		})
	}
	all.Wait()
}
