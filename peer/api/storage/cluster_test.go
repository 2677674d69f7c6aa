package storage

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/polling"
)

// cluster is four peers: three with a vote in every shard, of which the first leads
// all of them, and one without a replica.
type cluster struct{ leader, follower, third, without *consensus.Host }

// newCluster opens a cluster with the data shards of severalShards.
func newCluster(t *testing.T, history store.Limits) cluster {
	t.Helper()
	network := consensustest.NewNetwork()
	open := func(peer string) *consensus.Host {
		return network.Open(t, peer, t.TempDir(), func(c *consensus.Config) {
			c.DataShards = severalShards.shards
			c.History = history
			c.RTT = 20 * time.Millisecond
		})
	}
	c := cluster{leader: open("peer-a")}
	consensustest.Found(t, c.leader)
	c.follower = open("peer-b")
	c.third = open("peer-c")
	c.without = open("peer-d")
	var placing sync.WaitGroup
	for shard := range uint64(severalShards.shards + 1) {
		placing.Go(func() {
			consensustest.Place(t, c.leader, shard, shardmap.Want{Peer: "peer-a", Voter: true},
				shardmap.Want{Peer: "peer-b", Voter: true}, shardmap.Want{Peer: "peer-c", Voter: true})
		})
	}
	placing.Wait()
	c.settle(t)
	return c
}

// settle waits until each kind of peer is what it is called.
func (c cluster) settle(t *testing.T) {
	t.Helper()
	polling.Until(t, 10*time.Millisecond, 20*time.Second, "one leads and one follows in every shard", func(ctx context.Context) error {
		c.giveBack(ctx)
		leads := true
		for _, status := range c.leader.Status() {
			leads = leads && status.Leading
		}
		follows := 0
		for shard := range uint64(severalShards.shards + 1) {
			if _, here := c.follower.Local(shard); here {
				follows++
			}
			if _, here := c.without.Local(shard); here {
				t.Fatalf("the peer without replicas has one of shard %d", shard)
			}
		}
		if !leads || follows != severalShards.shards+1 {
			return fmt.Errorf("%d follow; %+v", follows, c.leader.Status())
		}
		return nil
	})
}

// giveBack hands shards to the leader that others lead: on a busy machine an election may have come between, and nobody else would.
func (c cluster) giveBack(ctx context.Context) {
	for _, host := range []*consensus.Host{c.follower, c.third} {
		for _, status := range host.Status() {
			if status.Leading {
				bounded, cancel := context.WithTimeout(ctx, time.Second)
				_ = host.TransferLeadership(bounded, status.Shard, "peer-a") // what is lost is asked for again
				cancel()
			}
		}
	}
}

// place is where a test stands: a peer, and how namespaces are laid out over shards.
type place struct {
	name string
	top  topology
	peer func(cluster) *consensus.Host
}

// places are all of them.
var places = func() []place {
	var all []place
	for _, top := range []topology{oneShard, severalShards} {
		all = append(all,
			place{top.name + ", leader", top, func(c cluster) *consensus.Host { return c.leader }},
			place{top.name + ", follower", top, func(c cluster) *consensus.Host { return c.follower }},
			place{top.name + ", without a replica", top, func(c cluster) *consensus.Host { return c.without }},
		)
	}
	return all
}()

// wipe removes what other tests have left below a prefix that they share.
func (c cluster) wipe(t *testing.T, prefix string) {
	t.Helper()
	for shard := range uint64(severalShards.shards + 1) {
		list, err := c.leader.List(t.Context(), shard, consensus.ListOptions{Prefix: prefix}, consensus.Linearizable)
		if err != nil {
			t.Fatal(err)
		}
		var tx store.Transaction
		for _, kv := range list.KVs {
			tx.Ops = append(tx.Ops, store.Op{Key: kv.Key, Delete: true})
		}
		if len(tx.Ops) == 0 {
			continue
		}
		if _, err := c.leader.Propose(context.Background(), shard, tx); err != nil {
			t.Fatal(err)
		}
	}
}
