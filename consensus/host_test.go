package consensus_test

import (
	"context"
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
