package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
)

// losses waits until exactly the given shards have lost their majority for good.
func losses(t *testing.T, h *consensus.Host, want ...uint64) []consensus.Loss {
	t.Helper()
	var found []consensus.Loss
	eventually(t, fmt.Sprintf("shards %v are lost", want), func() (err error) {
		if found, err = h.Losses(within(t, patience)); err != nil {
			return err
		}
		var shards []uint64
		for _, l := range found {
			if !l.Final() {
				return fmt.Errorf("shard %d may come back: %+v", l.Shard, l)
			}
			shards = append(shards, l.Shard)
		}
		if !slices.Equal(shards, want) {
			return fmt.Errorf("lost are %v", shards)
		}
		return nil
	})
	return found
}

// reopen shuts a host down and opens it over the same folder.
func reopen(t *testing.T, network *consensustest.Network, h *consensus.Host, peer, dir string) *consensus.Host {
	t.Helper()
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	return network.Open(t, peer, dir, nil)
}

// gone waits until a host holds none of the shards any more.
func gone(t *testing.T, h *consensus.Host, shards ...uint64) {
	t.Helper()
	eventually(t, "the zombie's replicas are deleted", func() error {
		for _, shard := range shards {
			if s := status(h, shard); s.Local {
				return fmt.Errorf("has %+v", s)
			}
		}
		return nil
	})
}

func TestALostShardIsRecoveredFromACopy(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	for _, peer := range []string{"d", "e"} {
		dirs[peer] = t.TempDir()
		hosts[peer] = network.Open(t, peer, dirs[peer], nil)
	}
	place(t, hosts["a"], 0, voters("a", "d", "e")...)
	mustPut(t, hosts["d"], 1, "k", "kept")
	eventually(t, "a shows it", func() error {
		if view, ok := hosts["a"].Local(1); ok {
			if kv, _ := view.Get("k"); string(kv.Value) == "kept" {
				return nil
			}
		}
		return errors.New("not yet")
	})
	if found, err := hosts["a"].Losses(within(t, patience)); err != nil || len(found) != 0 {
		t.Fatalf("nothing is lost, but: %+v, %v", found, err)
	}
	if err := hosts["a"].Recover(within(t, patience), []uint64{1}); err == nil || !strings.Contains(err.Error(), "has a quorum") {
		t.Fatalf("a healthy shard is not refused: %v", err)
	}
	for _, peer := range []string{"b", "c"} {
		crash(t, network, hosts[peer], peer, "a", "b", "c", "d", "e")
	}
	l := losses(t, hosts["a"], 1)[0]
	if slices.Sort(l.Missing); !slices.Equal(l.Missing, []string{"b", "c"}) || len(l.Voters) != 3 || len(l.Copies) != 1 || l.Copies[0].LeaderSeen == 0 {
		t.Errorf("the loss is %+v", l)
	}
	// Everything else goes on; the lost shard says why it does not, and shows what it has.
	mustPut(t, hosts["d"], 0, "meta", "goes on")
	_, err := hosts["d"].Propose(within(t, 3*time.Second), 1, put("k", "lost"))
	if !errors.Is(err, consensus.ErrNoQuorum) && !errors.Is(err, consensus.ErrUnknownOutcome) {
		t.Errorf("a write without quorum: %v", err)
	}
	_, _, _, err = hosts["d"].Get(within(t, 2*time.Second), 1, "k", consensus.Linearizable)
	if !errors.Is(err, consensus.ErrNoQuorum) || !strings.Contains(err.Error(), "2 of its 3 voters are missing: b, c") {
		t.Errorf("a read without quorum does not say why: %v", err)
	}
	if kv, ok, _, err := hosts["d"].Get(within(t, patience), 1, "k", consensus.Local); err != nil || !ok || string(kv.Value) != "kept" {
		t.Errorf("a stale read of a lost shard: %q, %v", kv.Value, err)
	}
	if err := hosts["d"].Recover(within(t, patience), []uint64{1}); err == nil || !strings.Contains(err.Error(), "no copy of it here") {
		t.Errorf("a recovery without a copy is not refused: %v", err)
	}
	if err := hosts["a"].Recover(within(t, patience), []uint64{1}); err != nil {
		t.Fatal(err)
	}
	hosts["a"] = reopen(t, network, hosts["a"], "a", dirs["a"])
	mustGet(t, hosts["d"], 1, "k", "kept")
	mustPut(t, hosts["e"], 1, "k", "new")
	settled(t, hosts["a"], 1, voters("a")...)
	eventually(t, "the former replica is deleted", func() error {
		text, err := os.ReadFile(filepath.Join(dirs["a"], "consensus.json"))
		if err == nil && strings.Contains(string(text), "removing") {
			err = fmt.Errorf("the folder says %s", text)
		}
		return err
	})
	place(t, hosts["a"], 1, voters("a", "d", "e")...)
	settled(t, hosts["e"], 1, voters("a", "d", "e")...)

	// The others come back together: a majority of the old group, which must not live.
	for _, peer := range []string{"b", "c"} {
		hosts[peer] = network.Open(t, peer, dirs[peer], nil)
	}
	gone(t, hosts["b"], 1)
	gone(t, hosts["c"], 1)
	mustGet(t, hosts["b"], 1, "k", "new")
	place(t, hosts["a"], 1, voters("a", "b", "c")...)
	mustGet(t, hosts["c"], 1, "k", "new")
}

func TestTheMetaShardIsRecoveredToo(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	d := network.Open(t, "d", t.TempDir(), nil)
	mustPut(t, hosts["a"], 1, "k", "kept")
	mustPut(t, hosts["a"], 0, "m", "kept")
	for _, h := range hosts {
		mustGet(t, h, 1, "k", "kept")
		mustGet(t, h, 0, "m", "kept")
	}
	for _, peer := range []string{"b", "c"} {
		crash(t, network, hosts[peer], peer, "a", "b", "c", "d")
	}
	losses(t, hosts["a"], 0, 1)
	if err := hosts["a"].Recover(within(t, patience), []uint64{0, 1}); err != nil {
		t.Fatal(err)
	}
	// Interrupted before it is finished, it goes on at the next start.
	hosts["a"] = reopen(t, network, hosts["a"], "a", dirs["a"])
	hosts["a"] = reopen(t, network, hosts["a"], "a", dirs["a"])
	mustGet(t, hosts["a"], 1, "k", "kept")
	mustGet(t, d, 0, "m", "kept")
	mustPut(t, d, 1, "k", "new")
	mustPut(t, d, 0, "m", "new")
	for shard := range uint64(2) {
		settled(t, hosts["a"], shard, voters("a")...)
	}
	// The old majority comes back: its own meta shard tells it that all is well.
	for _, peer := range []string{"b", "c"} {
		hosts[peer] = network.Open(t, peer, dirs[peer], nil)
	}
	gone(t, hosts["b"], 0, 1)
	gone(t, hosts["c"], 0, 1)
	mustGet(t, hosts["b"], 0, "m", "new")
	mustGet(t, hosts["c"], 1, "k", "new")
	for shard := range uint64(2) {
		place(t, hosts["a"], shard, voters("a", "b", "c")...)
		settled(t, hosts["c"], shard, voters("a", "b", "c")...)
	}
	mustGet(t, hosts["c"], 0, "m", "new")
}

func TestANonVotingCopyIsEnough(t *testing.T) {
	network := consensustest.NewNetwork()
	a, dir := network.Open(t, "a", t.TempDir(), nil), t.TempDir()
	consensustest.Found(t, a)
	b := network.Open(t, "b", dir, nil)
	for shard := range uint64(3) {
		place(t, a, shard, shardmap.Want{Peer: "a", Voter: true}, shardmap.Want{Peer: "b"})
	}
	rev := mustPut(t, a, 1, "k", "kept")
	eventually(t, "b has everything", func() error {
		for shard := range uint64(3) {
			if view, ok := b.Local(shard); !ok || view.Revision() == 0 || shard == 1 && view.Revision() < rev {
				return fmt.Errorf("shard %d is not there", shard)
			}
		}
		return nil
	})
	crash(t, network, a, "a", "b")
	losses(t, b, 0, 1, 2)
	if err := b.Recover(within(t, patience), []uint64{0, 1, 2}); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, network, b, "b", dir)
	mustGet(t, b, 1, "k", "kept")
	if next := mustPut(t, b, 1, "k", "new"); next <= rev {
		t.Errorf("revision %v after %v", next, rev)
	}
}

// What the log holds and nobody has confirmed may have been confirmed by the lost: it is kept.
func TestTheEndOfTheLogIsKept(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	mustPut(t, hosts["a"], 1, "k", "applied")
	lead(t, hosts, "a", 1)
	for _, peer := range []string{"b", "c"} {
		network.Cut("a", peer)
	}
	if _, err := hosts["a"].Propose(within(t, 500*time.Millisecond), 1, put("k", "logged")); err == nil {
		t.Fatal("a write without a majority was confirmed")
	}
	for _, peer := range []string{"b", "c"} {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := hosts[peer].Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	losses(t, hosts["a"], 0, 1)
	if err := hosts["a"].Recover(within(t, patience), []uint64{0, 1}); err != nil {
		t.Fatal(err)
	}
	a := reopen(t, network, hosts["a"], "a", dirs["a"])
	eventually(t, "the end of the log is applied", func() error {
		kv, _, _, err := a.Get(within(t, patience), 1, "k", consensus.Linearizable)
		if err == nil && string(kv.Value) != "logged" {
			err = fmt.Errorf("k is %q", kv.Value)
		}
		return err
	})
}

// lead makes a peer lead a shard.
func lead(t *testing.T, hosts map[string]*consensus.Host, peer string, shard uint64) {
	t.Helper()
	eventually(t, peer+" leads", func() error {
		for _, h := range hosts {
			if status(h, shard).Leading && h != hosts[peer] {
				if err := h.TransferLeadership(within(t, patience), shard, peer); err != nil {
					return err
				}
			}
		}
		if !status(hosts[peer], shard).Leading {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestDataShardsAreAdded(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	changed := hosts["b"].ShardsChanged()
	shard, err := hosts["a"].AddShard(within(t, patience))
	if err != nil || shard != 2 {
		t.Fatalf("added shard %d: %v", shard, err)
	}
	select {
	case <-changed:
	case <-within(t, patience).Done():
		t.Fatal("b was not told")
	}
	mustPut(t, hosts["b"], 2, "k", "v")
	place(t, hosts["a"], 2, voters("a", "b", "c")...)
	settled(t, hosts["c"], 2, voters("a", "b", "c")...)
	if err := hosts["a"].Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	mustGet(t, hosts["c"], 2, "k", "v")
	a := network.Open(t, "a", dirs["a"], nil)
	mustGet(t, a, 2, "k", "v")
	if shard, err := hosts["b"].AddShard(within(t, patience)); err != nil || shard != 3 {
		t.Errorf("added shard %d: %v", shard, err)
	}
}
