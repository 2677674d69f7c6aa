package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

const patience = 30 * time.Second

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until cond gives no error.
func eventually(t *testing.T, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// place assigns the shard to the wanted peers.
func place(t *testing.T, h *consensus.Host, shard uint64, want ...shardmap.Want) {
	t.Helper()
	eventually(t, "place", func() error {
		ctx := within(t, patience)
		kv, _, _, err := h.Get(ctx, 0, shardmap.Key(shard), consensus.Linearizable)
		if err != nil {
			return err
		}
		a, err := shardmap.Decode(kv.Key, kv.Value)
		if err != nil {
			return err
		}
		res, err := h.Propose(ctx, 0, store.Transaction{
			Conditions: []store.Condition{{Key: kv.Key, Revision: kv.Mod}},
			Ops:        []store.Op{{Key: kv.Key, Value: a.Place(want).Encode()}},
		})
		if err == nil && !res.OK {
			err = errors.New("the assignment changed meanwhile")
		}
		return err
	})
}

// settled waits until the shard's group has exactly these members, as a host with a
// replica sees it.
func settled(t *testing.T, h *consensus.Host, shard uint64, want ...shardmap.Want) {
	t.Helper()
	eventually(t, fmt.Sprintf("shard %d settles", shard), func() error {
		s := status(h, shard)
		if !s.Local || len(s.Members) != len(want) {
			return fmt.Errorf("is %+v", s)
		}
		for _, w := range want {
			ok := false
			for _, m := range s.Members {
				ok = ok || m.Peer == w.Peer && m.Voter == w.Voter
			}
			if !ok {
				return fmt.Errorf("%+v is missing in %+v", w, s)
			}
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
	if view, ok := hosts["a"].Local(1); !ok || view.Len() != 50 {
		t.Errorf("a's copy: %v", ok)
	}
	where, err := d.Where(ctx, 1)
	if err != nil || where.Leader == "" || len(where.Members) != 3 {
		t.Errorf("where: %+v, %v", where, err)
	}
	if _, _, _, err := d.Get(within(t, time.Second), 9, "k", consensus.Local); !errors.Is(err, consensus.ErrUnknownShard) {
		t.Errorf("shard 9: %v", err)
	}
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
	_, _, _, err = hosts["a"].Get(within(t, 2*time.Second), 1, "k", consensus.Linearizable)
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
	newer := []byte(`{"format": 2, ` + string(b[len("{\n  \"format\": 1,"):]))
	if err := os.WriteFile(file, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.Open(context.Background(), network.Config("a", dir)); !errors.Is(err, consensus.ErrNewerFormat) {
		t.Errorf("folder of a newer version: %v", err)
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
	ahead = -time.Minute
	mustPut(t, h, 1, "k", "v")
}
