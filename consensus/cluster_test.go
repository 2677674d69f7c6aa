package consensus_test

import (
	"context"
	"errors"
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

const patience = 30 * time.Second

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until cond gives no error.
func eventually(t *testing.T, what string, cond func() error) {
	t.Helper()
	polling.Until(t, 10*time.Millisecond, patience, what, func(context.Context) error { return cond() })
}

// place assigns the shard to the wanted peers, one of which is h's.
func place(t *testing.T, h *consensus.Host, shard uint64, want ...shardmap.Want) {
	t.Helper()
	consensustest.Place(t, h, shard, want...)
}

// settled waits until the shard's group is as wanted, as h sees it.
func settled(t *testing.T, h *consensus.Host, shard uint64, want ...shardmap.Want) {
	t.Helper()
	eventually(t, fmt.Sprintf("shard %d settles", shard), func() error {
		if !consensustest.Settled(h, shard, want) {
			return fmt.Errorf("is %+v", status(h, shard))
		}
		return nil
	})
}

func status(h *consensus.Host, shard uint64) consensus.ShardStatus {
	for _, s := range h.Status() {
		if s.Shard == shard {
			return s
		}
	}
	return consensus.ShardStatus{}
}

func voters(peers ...string) []shardmap.Want {
	var want []shardmap.Want
	for _, p := range peers {
		want = append(want, shardmap.Want{Peer: p, Voter: true})
	}
	return want
}

// crash stops a host without a word to the others.
func crash(t *testing.T, network *consensustest.Network, h *consensus.Host, self string, others ...string) {
	t.Helper()
	for _, o := range others {
		network.Cut(self, o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	network.Heal()
}

// trio is a cluster of three voters for shards 0 and 1.
func trio(t *testing.T, change func(*consensus.Config)) (*consensustest.Network, map[string]*consensus.Host, map[string]string) {
	t.Helper()
	network := consensustest.NewNetwork()
	hosts, dirs := map[string]*consensus.Host{}, map[string]string{}
	for _, peer := range []string{"a", "b", "c"} {
		dirs[peer] = t.TempDir()
		hosts[peer] = network.Open(t, peer, dirs[peer], func(c *consensus.Config) {
			c.DataShards = 1
			if change != nil {
				change(c)
			}
		})
	}
	consensustest.Found(t, hosts["a"])
	for shard := uint64(0); shard < 2; shard++ {
		place(t, hosts["a"], shard, voters("a", "b", "c")...)
	}
	for _, h := range hosts {
		for shard := uint64(0); shard < 2; shard++ {
			settled(t, h, shard, voters("a", "b", "c")...)
		}
	}
	return network, hosts, dirs
}

func TestWritesGoOnWhenALeaderCrashes(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	mustPut(t, hosts["b"], 1, "k", "before")
	where, err := hosts["b"].Where(within(t, patience), 1)
	if err != nil {
		t.Fatal(err)
	}
	leader := where.Leader
	var rest []string
	for _, p := range []string{"a", "b", "c"} {
		if p != leader {
			rest = append(rest, p)
		}
	}
	crash(t, network, hosts[leader], leader, rest...)
	start := time.Now()
	mustPut(t, hosts[rest[0]], 1, "k", "after")
	t.Logf("crash of the leader to the next write: %v (raft tick 10 ms)", time.Since(start))
	mustGet(t, hosts[rest[1]], 1, "k", "after")

	// It comes back with its disk, promoted replicas included, and catches up.
	back := network.Open(t, leader, dirs[leader], nil)
	eventually(t, "catch up", func() error {
		view, ok := back.Local(1)
		if !ok {
			return errors.New("not ready")
		}
		if kv, _ := view.Get("k"); string(kv.Value) != "after" {
			return fmt.Errorf("holds %q", kv.Value)
		}
		return nil
	})
}

func TestAWatchOverLeaderChangesHasNoGapAndNoDouble(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	outside := network.Open(t, "d", t.TempDir(), nil)
	first := mustPut(t, hosts["a"], 1, "/w/0", "0")
	ctx := within(t, 60*time.Second)

	const writes = 300
	var watches sync.WaitGroup
	for name, h := range map[string]*consensus.Host{"b": hosts["b"], "c": hosts["c"], "outside": outside} {
		w, err := h.Watch(ctx, 1, consensus.WatchOptions{Prefix: "/w/", After: first, Progress: true})
		if err != nil {
			t.Fatal(err)
		}
		watches.Go(func() {
			next, last := 1, first
			for events := range w.Events() {
				for _, ev := range events {
					if ev.Revision < last || (ev.Revision == last && !ev.Progress) {
						t.Errorf("%s: revision %v after %v", name, ev.Revision, last)
					}
					last = ev.Revision
					if ev.Progress {
						continue
					}
					if want := fmt.Sprintf("/w/%d", next); ev.Key != want {
						t.Errorf("%s: got %s, want %s", name, ev.Key, want)
						return
					}
					next++
				}
				if next > writes {
					w.Stop()
					return
				}
			}
			t.Errorf("%s: ended after %d events: %v", name, next-1, w.Err())
		})
	}
	for i := 1; i <= writes; i++ {
		mustPut(t, outside, 1, fmt.Sprintf("/w/%d", i), "v")
		if i%100 == 50 {
			for peer, h := range hosts {
				if status(h, 1).Leading {
					to := "a"
					if peer == "a" {
						to = "b"
					}
					if err := h.TransferLeadership(ctx, 1, to); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
	// One of those read from goes away.
	crash(t, network, hosts["a"], "a", "b", "c", "d")
	watches.Wait()
}

func TestAHostWithoutReplicasReachesEverything(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	d := network.Open(t, "d", t.TempDir(), nil)
	ctx := within(t, patience)
	var want []string
	for i := range 50 {
		key := fmt.Sprintf("/list/%02d", i)
		want = append(want, key)
		mustPut(t, d, 1, key, "v")
	}
	res, err := d.List(ctx, 1, consensus.ListOptions{Prefix: "/list/", Limit: 20}, consensus.Linearizable)
	if err != nil || len(res.KVs) != 20 || !res.More || res.Count != 50 {
		t.Fatalf("list: %d of %d, more %v, %v", len(res.KVs), res.Count, res.More, err)
	}
	rest, err := d.List(ctx, 1, consensus.ListOptions{
		Prefix: "/list/", Start: res.KVs[19].Key + "\x00", At: res.Revision,
	}, consensus.Linearizable)
	if err != nil || len(rest.KVs) != 30 || rest.KVs[29].Key != want[49] {
		t.Fatalf("rest of the list: %+v, %v", rest, err)
	}
	if _, err := d.List(ctx, 1, consensus.ListOptions{At: 1}, consensus.Linearizable); err != nil {
		t.Errorf("revision 1 is within the history: %v", err)
	}
	far := d.Now() + store.At(store.Epoch.Add(time.Hour))
	if _, err := d.List(ctx, 1, consensus.ListOptions{At: far}, consensus.Linearizable); !errors.Is(err, consensus.ErrFuture) {
		t.Errorf("list in an hour: %v", err)
	}
	upTo := d.Now()
	if at, err := d.Close(ctx, 1, upTo); err != nil || at < upTo {
		t.Errorf("close %v: %v, %v", upTo, at, err)
	}
	eventually(t, "a has it too", func() error {
		if view, ok := hosts["a"].Local(1); !ok || view.Len() != 50 {
			return fmt.Errorf("ready %v, %d keys", ok, view.Len())
		}
		return nil
	})
	where, err := d.Where(ctx, 1)
	if err != nil || where.Leader == "" || len(where.Members) != 3 {
		t.Errorf("where: %+v, %v", where, err)
	}
	if _, _, _, err := d.Get(within(t, time.Second), 9, "k", consensus.Local); !errors.Is(err, consensus.ErrUnknownShard) {
		t.Errorf("shard 9: %v", err)
	}
}

func TestLeadershipIsReportedAndHandedOverOnShutdown(t *testing.T) {
	_, hosts, _ := trio(t, nil)
	gained := make(chan string, 100)
	for name, h := range hosts {
		go func() {
			for l := range h.Leadership() {
				if view, ok := h.Local(l.Shard); l.Leader && l.Shard == 1 && ok && view.Len() >= 0 {
					gained <- name
				}
			}
		}()
	}
	ctx := within(t, patience)
	leader := ""
	for peer, h := range hosts {
		if status(h, 1).Leading {
			leader = peer
		}
	}
	if leader == "" {
		t.Fatal("nobody leads shard 1")
	}
	to := map[string]string{"a": "b", "b": "c", "c": "a"}[leader]
	if err := hosts[leader].TransferLeadership(ctx, 1, to); err != nil {
		t.Fatal(err)
	}
	for got := ""; got != to; {
		select {
		case got = <-gained:
		case <-ctx.Done():
			t.Fatalf("%s never reported its leadership", to)
		}
	}
	stopping := time.Now()
	if err := hosts[to].Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("planned stop took %v", time.Since(stopping))
	start := time.Now()
	mustPut(t, hosts[leader], 1, "k", "v")
	t.Logf("write after it: %v", time.Since(start))
}

func TestAStoppedClusterFormsAgain(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	rev := mustPut(t, hosts["a"], 1, "k", "v")
	for _, peer := range []string{"a", "b", "c"} {
		if err := hosts[peer].Shutdown(within(t, patience)); err != nil {
			t.Fatal(err)
		}
	}
	for _, peer := range []string{"c", "a", "b"} {
		hosts[peer] = network.Open(t, peer, dirs[peer], nil)
	}
	mustGet(t, hosts["b"], 1, "k", "v")
	if next := mustPut(t, hosts["c"], 1, "k", "w"); next <= rev {
		t.Errorf("revision %v after %v", next, rev)
	}
}
