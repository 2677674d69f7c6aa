package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

func TestALostMajorityIsNamed(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	mustPut(t, hosts["a"], 1, "k", "v")
	mustGet(t, hosts["a"], 1, "k", "v")
	crash(t, network, hosts["b"], "b", "a", "c")
	crash(t, network, hosts["c"], "c", "a", "b")
	kv, found, _, err := hosts["a"].Get(within(t, patience), 1, "k", consensus.Local)
	if err != nil || !found || string(kv.Value) != "v" {
		t.Errorf("stale read without a quorum: %q, %v, %v", kv.Value, found, err)
	}
	// Until its lease ends, a leader knows that nobody has written anything.
	eventually(t, "a linearizable read is refused", func() error {
		if kv, _, _, err = hosts["a"].Get(within(t, 2*time.Second), 1, "k", consensus.Linearizable); err == nil {
			return fmt.Errorf("it gave %q", kv.Value)
		}
		return nil
	})
	var about *consensus.ShardError
	if !errors.Is(err, consensus.ErrNoQuorum) || !errors.As(err, &about) || about.Shard != 1 {
		t.Errorf("linearizable read without a quorum: %v", err)
	}
	// The leader may have taken the write before it noticed; both answers are true.
	_, err = hosts["a"].Propose(within(t, 2*time.Second), 1, put("k", "w"))
	if !errors.Is(err, consensus.ErrNoQuorum) && !errors.Is(err, consensus.ErrUnknownOutcome) {
		t.Errorf("write without a quorum: %v", err)
	}
	_, err = hosts["a"].Propose(within(t, 2*time.Second), 1, put("k", "w"))
	if !errors.Is(err, consensus.ErrNoQuorum) {
		t.Errorf("second write without a quorum: %v", err)
	}
}

func TestForeignAndNewerFoldersAreRefused(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	if err := h.Found(within(t, patience)); !errors.Is(err, consensus.ErrAlreadyFounded) {
		t.Errorf("second founding: %v", err)
	}
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "consensus.json")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of %s: %v, %v", file, info.Mode(), err)
	}
	for name, change := range map[string]func(*consensus.Config){
		"cluster": func(c *consensus.Config) { c.ClusterID = "other" },
		"peer":    func(c *consensus.Config) { c.PeerID = "other" },
	} {
		cfg := network.Config("a", dir)
		change(&cfg)
		if _, err := consensus.Open(context.Background(), cfg); !errors.Is(err, consensus.ErrForeignData) {
			t.Errorf("folder of another %s: %v", name, err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	newer := []byte(`{"format": 3, ` + string(b[len("{\n  \"format\": 2,"):]))
	if err := os.WriteFile(file, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.Open(context.Background(), network.Config("a", dir)); !errors.Is(err, consensus.ErrNewerFormat) {
		t.Errorf("folder of a newer version: %v", err)
	}
}

func TestExpiredKeysAreSwept(t *testing.T) {
	h := consensustest.NewHost(t)
	ctx := within(t, patience)
	w, err := h.Watch(ctx, 1, consensus.WatchOptions{Prefix: "/ttl/"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tx := store.Transaction{Ops: []store.Op{
		{Key: "/ttl/soon", Value: []byte("v"), Expires: now.UnixMilli()},
		{Key: "/ttl/later", Value: []byte("v"), Expires: now.Add(time.Hour).UnixMilli()},
	}}
	if _, err := h.Propose(ctx, 1, tx); err != nil {
		t.Fatal(err)
	}
	for events := range w.Events() {
		for _, ev := range events {
			if ev.Delete && ev.Key == "/ttl/soon" {
				mustGet(t, h, 1, "/ttl/later", "v")
				return
			}
			if ev.Delete {
				t.Fatalf("%s was deleted", ev.Key)
			}
		}
	}
	t.Fatal(w.Err())
}

func TestARequestIsAppliedOnce(t *testing.T) {
	h := consensustest.NewHost(t)
	ctx := within(t, patience)
	tx := put("k", "1")
	tx.ID[0], tx.Stamp = 9, h.Now()
	first, err := h.Propose(ctx, 1, tx)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, h, 1, "k", "2")
	again, err := h.Propose(ctx, 1, tx)
	if err != nil || again.Revisions[0] != first.Revisions[0] {
		t.Fatalf("second time: %+v, %v; first %+v", again, err, first)
	}
	mustGet(t, h, 1, "k", "2")
}

func TestBadProposalsAreRefused(t *testing.T) {
	ahead := time.Duration(0)
	h := consensustest.NewNetwork().Open(t, "a", t.TempDir(), func(c *consensus.Config) {
		c.Offset = func() (time.Duration, bool) { return ahead, true }
		c.MaxTransaction = 1 << 20
	})
	consensustest.Found(t, h)
	ctx := within(t, patience)
	if _, err := h.Propose(ctx, 1, put("k", string(make([]byte, 1<<20)))); !errors.Is(err, consensus.ErrTooLarge) {
		t.Errorf("large value: %v", err)
	}
	if _, err := h.Propose(ctx, 1, put(string(make([]byte, store.MaxKey+1)), "v")); !errors.Is(err, consensus.ErrTooLarge) {
		t.Errorf("long key: %v", err)
	}
	if _, err := h.Close(ctx, 1, h.Now()+store.At(store.Epoch.Add(time.Minute))); !errors.Is(err, consensus.ErrFuture) {
		t.Errorf("close in a minute: %v", err)
	}
	ahead = time.Minute
	if _, err := h.Propose(ctx, 1, put("k", "v")); !errors.Is(err, consensus.ErrClockSkew) {
		t.Errorf("clock a minute ahead: %v", err)
	}
	ahead = -2 * time.Hour
	if _, err := h.Propose(ctx, 1, put("k", "v")); !errors.Is(err, consensus.ErrClockSkew) || !strings.Contains(err.Error(), "2h0m0s behind") {
		t.Errorf("clock two hours behind: %v", err)
	}
	ahead = -10 * time.Second
	mustPut(t, h, 1, "k", "v")
}

// TestARefusalIsNotBelievedWhileAnAttemptIsLost loses the answer to a request whose conditions fail, so that it is asked again. That a key
// is there already may be another story by the time the lost attempt is applied; that a revision was overtaken stays true.
func TestARefusalIsNotBelievedWhileAnAttemptIsLost(t *testing.T) {
	network := consensustest.NewNetwork()
	a := network.Open(t, "a", t.TempDir(), nil)
	consensustest.Found(t, a)
	b := network.Open(t, "b", t.TempDir(), nil) // it holds nothing and asks a
	old := mustPut(t, b, 1, "k", "1")
	mustPut(t, b, 1, "k", "2")

	create, update := put("k", "3"), put("k", "3")
	create.Conditions = []store.Condition{{Key: "k"}}
	update.Conditions = []store.Condition{{Key: "k", Revision: old}}
	if res, err := proposeTwice(t, network, a, b, create); !errors.Is(err, consensus.ErrUnknownOutcome) {
		t.Errorf("a creation whose first answer was lost: %+v, %v", res, err)
	}
	if res, err := proposeTwice(t, network, a, b, update); err != nil || res.OK {
		t.Errorf("an update of an overtaken version whose first answer was lost: %+v, %v", res, err)
	}
	if res, err := b.Propose(within(t, patience), 1, create); err != nil || res.OK {
		t.Errorf("a creation that was answered: %+v, %v", res, err)
	}
	mustGet(t, a, 1, "k", "2")
}

// proposeTwice proposes at b until an attempt has come to a, the answer to which is lost, and returns the outcome of the next.
func proposeTwice(t *testing.T, network *consensustest.Network, a, b *consensus.Host, tx store.Transaction) (res store.Result, err error) {
	t.Helper()
	eventually(t, "an answer is lost", func() error {
		mustGet(t, b, 1, "k", "2") // the connection stands
		var failed error
		if tx.ID, tx.Stamp, failed = b.Request(t.Context()); failed != nil {
			return failed
		}
		network.Deafen("b", "a")
		done := make(chan struct{})
		go func() {
			defer close(done)
			res, err = b.Propose(within(t, patience), 1, tx)
		}()
		// Every outcome, also a refusal, lifts the shard's revision to the stamp.
		missed := wait.PollUntilContextTimeout(t.Context(), time.Millisecond, time.Second, true, func(context.Context) (bool, error) {
			view, ok := a.Local(1)
			return ok && view.Revision() >= tx.Stamp, nil
		})
		network.Heal()
		<-done
		if missed != nil {
			// Something else was on its way to b, with which the connection broke.
			return fmt.Errorf("the request did not arrive: %w", missed)
		}
		return nil
	})
	return res, err
}
