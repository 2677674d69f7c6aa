package consensus_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

func TestAClusterGrowsFromOneToThree(t *testing.T) {
	network := consensustest.NewNetwork()
	a := network.Open(t, "a", t.TempDir(), nil)
	consensustest.Found(t, a)
	mustPut(t, a, 1, "k", "from one")

	b := network.Open(t, "b", t.TempDir(), nil)
	two := []shardmap.Want{{Peer: "a", Voter: true}, {Peer: "b"}}
	for shard := range uint64(3) {
		place(t, a, shard, two...)
	}
	eventually(t, "a copy on b", func() error {
		for shard := range uint64(3) {
			if s := status(b, shard); !s.Local || s.Voter || s.Revision == 0 {
				return fmt.Errorf("is %+v", s)
			}
		}
		if view, ok := b.Local(1); !ok {
			return errors.New("not ready")
		} else if kv, ok := view.Get("k"); !ok || string(kv.Value) != "from one" {
			return fmt.Errorf("b holds %q", kv.Value)
		}
		return nil
	})
	mustPut(t, b, 1, "k", "from two")

	c := network.Open(t, "c", t.TempDir(), nil)
	mustGet(t, c, 1, "k", "from two")
	for shard := range uint64(3) {
		place(t, c, shard, voters("a", "b", "c")...)
	}
	for shard := range uint64(3) {
		for _, h := range []*consensus.Host{a, b, c} {
			settled(t, h, shard, voters("a", "b", "c")...)
		}
	}
	mustPut(t, c, 1, "k", "from three")
	for _, h := range []*consensus.Host{a, b, c} {
		mustGet(t, h, 1, "k", "from three")
	}
	// And back: a goes, although it led everything.
	for shard := range uint64(3) {
		place(t, b, shard, shardmap.Want{Peer: "b", Voter: true}, shardmap.Want{Peer: "c", Voter: true})
		settled(t, b, shard, voters("b", "c")...)
	}
	eventually(t, "a deletes its replicas", func() error {
		for shard := range uint64(3) {
			if s := status(a, shard); s.Local {
				return fmt.Errorf("has %+v", s)
			}
		}
		return nil
	})
	mustGet(t, a, 1, "k", "from three")
	mustPut(t, a, 2, "k", "from outside")
}

func TestAWipedDiskJoinsAsNew(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	before := status(hosts["c"], 1).ReplicaID
	disk := hosts["c"].DiskID()
	crash(t, network, hosts["c"], "c", "a", "b")
	if err := os.RemoveAll(dirs["c"]); err != nil {
		t.Fatal(err)
	}
	mustPut(t, hosts["a"], 1, "k", "v")
	c := network.Open(t, "c", dirs["c"], nil)
	if c.DiskID() == disk {
		t.Fatal("a new folder has the old one's identity")
	}
	for shard := range uint64(2) {
		settled(t, c, shard, voters("a", "b", "c")...)
	}
	if after := status(c, 1).ReplicaID; after == before {
		t.Errorf("replica ID %d was used again", after)
	}
	mustGet(t, c, 1, "k", "v")
}

func TestANewReplicaStartsFromASnapshot(t *testing.T) {
	network := consensustest.NewNetwork()
	compact := func(c *consensus.Config) { c.SnapshotEntries, c.DataShards = 100, 1 }
	a := network.Open(t, "a", t.TempDir(), compact)
	consensustest.Found(t, a)
	var first store.Revision
	for i := range 500 {
		rev := mustPut(t, a, 1, fmt.Sprintf("k%d", i%50), fmt.Sprint(i))
		if i == 0 {
			first = rev
		}
	}
	b := network.Open(t, "b", t.TempDir(), compact)
	place(t, a, 1, shardmap.Want{Peer: "a", Voter: true}, shardmap.Want{Peer: "b"})
	eventually(t, "catch up", func() error {
		view, ok := b.Local(1)
		if !ok || view.Len() != 50 {
			return fmt.Errorf("ready %v", ok)
		}
		kv, _ := view.Get("k49")
		if string(kv.Value) != "499" {
			return fmt.Errorf("holds %s", kv.Value)
		}
		return nil
	})
	// The history came along: a watch resumes on b from before the snapshot.
	w, err := b.Watch(within(t, patience), 1, consensus.WatchOptions{After: first})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	n := 0
	for events := range w.Events() {
		if n += len(events); n >= 499 {
			break
		}
	}
	if n != 499 {
		t.Errorf("%d events, want 499: %v", n, w.Err())
	}
}

func TestADeadPeerIsReplacedAndItsZombieCleanedUp(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	d := network.Open(t, "d", t.TempDir(), nil)
	mustPut(t, hosts["a"], 1, "k", "v")
	crash(t, network, hosts["c"], "c", "a", "b", "d")
	for shard := range uint64(2) {
		place(t, d, shard, voters("a", "b", "d")...)
	}
	for shard := range uint64(2) {
		settled(t, d, shard, voters("a", "b", "d")...)
	}
	c := network.Open(t, "c", dirs["c"], nil)
	eventually(t, "c deletes its replicas", func() error {
		for shard := range uint64(2) {
			if s := status(c, shard); s.Local {
				return fmt.Errorf("has %+v", s)
			}
		}
		return nil
	})
	mustGet(t, c, 1, "k", "v")
}
