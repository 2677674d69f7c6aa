package consensus_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

func put(key, value string) store.Transaction {
	return store.Transaction{Ops: []store.Op{{Key: key, Value: []byte(value)}}}
}

func mustPut(t *testing.T, h *consensus.Host, shard uint64, key, value string) store.Revision {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := h.Propose(ctx, shard, put(key, value))
	if err != nil || !res.OK {
		t.Fatalf("put %s: %+v, %v", key, res, err)
	}
	return res.Revisions[0]
}

func mustGet(t *testing.T, h *consensus.Host, shard uint64, key, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	kv, found, _, err := h.Get(ctx, shard, key, consensus.Linearizable)
	if err != nil || !found || string(kv.Value) != want {
		t.Fatalf("get %s: %q, %v, %v; want %q", key, kv.Value, found, err, want)
	}
}

func TestOneHostKeepsItsStateOverARestart(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	rev := mustPut(t, h, 1, "/registry/x", "1")
	mustGet(t, h, 1, "/registry/x", "1")
	if rev.Shard() != 1 {
		t.Errorf("revision %v is of shard %d", rev, rev.Shard())
	}
	if err := h.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	h = network.Open(t, "a", dir, nil)
	if !h.Founded() {
		t.Error("the folder forgot that it was founded")
	}
	mustGet(t, h, 1, "/registry/x", "1")
	if again := mustPut(t, h, 1, "/registry/x", "1"); again != rev {
		t.Errorf("a write that changes nothing got revision %v, had %v", again, rev)
	}
}

// TestAFoundingUnderWayIsNotMissed: a host that finds the meta shard empty must look again. If it watched from then on, it would never learn
// what is written in between.
func TestAFoundingUnderWayIsNotMissed(t *testing.T) {
	h := consensustest.NewNetwork().Open(t, "a", t.TempDir(), nil)
	if err := consensus.StartEmptyMeta(h); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it does not watch an empty shard", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := consensus.FollowOnce(ctx, h)
		if err == nil || !strings.Contains(err.Error(), "holds nothing yet") {
			return fmt.Errorf("following an empty shard: %v", err)
		}
		return nil
	})
}
