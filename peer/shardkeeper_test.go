package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
	"shoal/internal/polling"
	"shoal/mesh/membership"
	"shoal/peer/identity"
)

// kept is a cluster of real consensus hosts whose shards a keeper looks after, as the meta leader's would.
type kept struct {
	t       *testing.T
	network *consensustest.Network
	hosts   map[string]*consensus.Host
	dirs    map[string]string
	dead    map[string]bool
	// unnoticed says that nobody has found out about the dead yet.
	unnoticed bool
	keeper    shardKeeper
	// ahead is how far the keeper's clock runs ahead, so that nobody has to wait for a hysteresis.
	ahead time.Duration
}

func newKept(t *testing.T) *kept {
	t.Helper()
	c := &kept{t: t, network: consensustest.NewNetwork(), hosts: map[string]*consensus.Host{}, dirs: map[string]string{}, dead: map[string]bool{}}
	c.keeper = shardKeeper{
		members: c.members, log: slog.New(slog.DiscardHandler), down: map[string]time.Time{},
		quarantined: func(m membership.Member) []uint64 { return slices.Sorted(maps.Keys(c.hosts[m.PeerID].Quarantined())) },
	}
	c.open("p1")
	consensustest.Found(t, c.hosts["p1"])
	c.record("p1")
	return c
}

func (c *kept) open(name string) {
	c.t.Helper()
	if c.dirs[name] == "" {
		c.dirs[name] = c.t.TempDir()
	}
	c.hosts[name] = c.network.Open(c.t, name, c.dirs[name], nil)
	delete(c.dead, name)
}

func (c *kept) members() []membership.Member {
	var all []membership.Member
	for name := range c.hosts {
		status := membership.Alive
		if c.dead[name] && !c.unnoticed {
			status = membership.Failed
		}
		all = append(all, membership.Member{PeerID: name, Name: name, Status: status})
	}
	return all
}

func (c *kept) any() *consensus.Host {
	for name, host := range c.hosts {
		if !c.dead[name] {
			return host
		}
	}
	return nil
}

func (c *kept) propose(ops ...store.Op) {
	c.t.Helper()
	if _, err := c.any().Propose(c.t.Context(), consensus.MetaShard, store.Transaction{Ops: ops}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *kept) record(name string) {
	c.t.Helper()
	value, err := json.Marshal(identity.PeerRecord{PeerID: name, Name: name})
	if err != nil {
		c.t.Fatal(err)
	}
	c.propose(store.Op{Key: peerRecords + name, Value: value})
}

func (c *kept) join(name string) {
	c.t.Helper()
	c.open(name)
	c.record(name)
}

// crash ends a host; its folder stays.
func (c *kept) crash(name string) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.hosts[name].Shutdown(ctx); err != nil {
		c.t.Fatal(err)
	}
	c.dead[name] = true
}

// keep lets the keeper look until every shard is as wanted, and never with fewer voters than floor.
func (c *kept) keep(what string, floor int, done func(shards map[uint64]consensus.ShardStatus) error) {
	c.t.Helper()
	polling.Until(c.t, 20*time.Millisecond, 40*time.Second, what, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c.keeper.host = c.any()
		err := c.keeper.keep(ctx, time.Now().Add(c.ahead))
		shards := map[uint64]consensus.ShardStatus{}
		for shard := range uint64(3) {
			if where, led := c.led(shard); led {
				shards[shard] = where
				if n := voters(where); n < floor {
					c.t.Fatalf("%s: shard %d has %d voters: %+v", what, shard, n, where.Members)
				}
			}
		}
		if err == nil && len(shards) < 3 {
			err = errors.New("a shard has no leader")
		}
		if err == nil {
			err = done(shards)
		}
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w\n%s", err, c.describe())
	})
}

// describe is what every host says of its shards.
func (c *kept) describe() string {
	var text strings.Builder
	for name, host := range c.hosts {
		for _, s := range host.Status() {
			fmt.Fprintf(&text, "%s: %+v\n", name, s)
		}
	}
	return text.String()
}

// led is a shard as its leader has it; a follower's copy may be older than what another host has shown before.
func (c *kept) led(shard uint64) (latest consensus.ShardStatus, found bool) {
	for name, host := range c.hosts {
		if c.dead[name] {
			continue
		}
		for _, s := range host.Status() {
			if s.Shard == shard && s.Leading && s.Members != nil && (!found || s.Term > latest.Term) {
				latest, found = s, true
			}
		}
	}
	return latest, found
}

func voters(s consensus.ShardStatus) (n int) {
	for _, m := range s.Members {
		if m.Voter {
			n++
		}
	}
	return n
}

// have wants so many voters and copies of every shard, none of them on the peers named.
func have(voting, copies int, without ...string) func(map[uint64]consensus.ShardStatus) error {
	return func(shards map[uint64]consensus.ShardStatus) error {
		for shard, s := range shards {
			gone := slices.ContainsFunc(s.Members, func(m consensus.Member) bool { return slices.Contains(without, m.Peer) })
			if voters(s) != voting || len(s.Members) != copies || gone {
				return fmt.Errorf("shard %d has %+v", shard, s.Members)
			}
		}
		return nil
	}
}

func (c *kept) leave(name string, floor int, done func(map[uint64]consensus.ShardStatus) error) {
	c.t.Helper()
	c.propose(store.Op{Key: leavingPrefix + name, Value: []byte(name)})
	c.keep(name+" leaves", floor, done)
	host := c.hosts[name]
	c.dead[name] = true
	c.propose(store.Op{Key: peerRecords + name, Delete: true}, store.Op{Key: leavingPrefix + name, Delete: true})
	delete(c.hosts, name)
	if err := host.Shutdown(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *kept) put(value string) {
	c.t.Helper()
	for shard := range uint64(3) {
		if _, err := c.any().Propose(c.t.Context(), shard, store.Transaction{Ops: []store.Op{{Key: "k", Value: []byte(value)}}}); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *kept) get(want string) {
	c.t.Helper()
	for name, host := range c.hosts {
		for shard := range uint64(3) {
			if c.dead[name] {
				continue
			}
			kv, _, _, err := host.Get(c.t.Context(), shard, "k", consensus.Linearizable)
			if err != nil || string(kv.Value) != want {
				c.t.Fatalf("%s reads %q in shard %d: %v; want %q", name, kv.Value, shard, err, want)
			}
		}
	}
}

// TestOneToNineAndBack grows a cluster of real hosts to nine peers and shrinks it to one again, by joining and leaving alone.
func TestOneToNineAndBack(t *testing.T) {
	c := newKept(t)
	c.put("from one")
	c.join("p2")
	c.keep("two", 1, have(1, 2))
	c.join("p3")
	c.keep("three", 1, have(3, 3))
	for i := 4; i <= 9; i++ {
		c.join(fmt.Sprintf("p%d", i))
		if i == 5 {
			if err := (&Peer{host: c.any()}).change(t.Context(), func(s *settings) { s.Voters = 5 }); err != nil {
				t.Fatal(err)
			}
			c.keep("five voters on request", 3, have(5, 5))
		}
	}
	c.put("from nine")
	c.keep("nine peers carry their share", 5, func(shards map[uint64]consensus.ShardStatus) error {
		load := map[string]int{}
		for _, s := range shards {
			for _, m := range s.Members {
				load[m.Peer]++
			}
		}
		for name := range c.hosts {
			if load[name] < 1 || load[name] > 2 {
				return fmt.Errorf("15 replicas on 9 peers: %v", load)
			}
		}
		return nil
	})
	for i := 1; i <= 4; i++ { // the founder first
		name := fmt.Sprintf("p%d", i)
		c.leave(name, 5, have(5, 5, name))
	}
	if err := (&Peer{host: c.any()}).change(t.Context(), func(s *settings) { s.Voters = 3 }); err != nil {
		t.Fatal(err)
	}
	c.keep("three voters again", 3, have(3, 3))
	c.leave("p5", 3, have(3, 3, "p5"))
	c.leave("p6", 3, have(3, 3, "p6"))
	c.leave("p7", 1, have(1, 2, "p7"))
	c.leave("p8", 1, have(1, 1, "p8"))
	c.get("from nine")
}

// TestDeathsAreReplacedAfterTheHysteresis: a peer that is back in time only catches up; one that is not is replaced by itself, is cleaned
// up when it returns, and may then hold replicas again.
func TestDeathsAreReplacedAfterTheHysteresis(t *testing.T) {
	c := newKept(t)
	for _, name := range []string{"p2", "p3", "p4"} {
		c.join(name)
	}
	onThree := func(shards map[uint64]consensus.ShardStatus) error { return have(3, 3)(shards) }
	c.keep("four", 1, onThree)
	victim := ""
	where, err := c.any().Where(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range where.Members {
		if m.Peer != where.Leader {
			victim = m.Peer
		}
	}
	before := replicaOn(where, victim)
	c.crash(victim)
	c.put("while it is away")
	c.keep("the keeper has noticed", 3, onThree)
	c.ahead += 50 * time.Second
	c.keep("nothing moves before the hysteresis is over", 3, onThree)
	if where, err = c.any().Where(t.Context(), 1); err != nil || replicaOn(where, victim) != before {
		t.Fatalf("its replica was moved: %+v, %v", where.Members, err)
	}
	c.open(victim)
	c.get("while it is away")
	c.keep("it is back", 3, onThree)
	if where, err = c.any().Where(t.Context(), 1); err != nil || replicaOn(where, victim) != before {
		t.Fatalf("it did not just catch up: %+v, %v", where.Members, err)
	}

	c.crash(victim)
	c.keep("the keeper has noticed again", 3, onThree)
	c.ahead += 61 * time.Second
	c.keep("its replicas are elsewhere", 3, have(3, 3, victim))
	c.put("without it")
	c.open(victim)
	c.keep("it is a peer like any", 3, onThree)
	c.get("without it")
	if where, err = c.any().Where(t.Context(), 1); err == nil && replicaOn(where, victim) == before {
		t.Errorf("its replica %d of shard 1 is in use again", before)
	}
}

func replicaOn(s consensus.ShardStatus, peer string) uint64 {
	for _, m := range s.Members {
		if m.Peer == peer {
			return m.ReplicaID
		}
	}
	return 0
}

// TestWhoNeverCatchesUpIsReplaced: two peers die before it is noticed that they do not take their replicas. Most of the assigned voters are
// dead then, and the only one that votes lives: after the hysteresis others hold the two's replicas.
func TestWhoNeverCatchesUpIsReplaced(t *testing.T) {
	c := newKept(t)
	c.put("from one")
	c.join("p2")
	c.join("p3")
	c.unnoticed = true
	c.crash("p2")
	c.crash("p3")
	waiting := func(shards map[uint64]consensus.ShardStatus) error {
		for shard, s := range shards {
			if voters(s) != 1 || voters(consensus.ShardStatus{Members: s.Assigned}) != 3 {
				return fmt.Errorf("shard %d is assigned to %+v and held by %+v", shard, s.Assigned, s.Members)
			}
		}
		return nil
	}
	c.keep("the dead are to vote", 1, waiting)
	c.unnoticed = false
	c.join("p4")
	c.join("p5")
	c.keep("they are found dead", 1, waiting)
	c.ahead += 50 * time.Second
	for range 5 {
		c.keep("nothing moves before the hysteresis is over", 1, waiting)
	}
	c.ahead += 11 * time.Second
	c.keep("others vote", 1, have(3, 3, "p2", "p3"))
	c.put("without them")
	c.open("p2")
	c.open("p3")
	c.keep("they are peers like any", 3, have(3, 3))
	c.get("without them")
}

// TestAQuarantinedReplicaIsMoved: a replica that failed too often, after it had replaced another, is left stopped on its peer. After the
// hysteresis it is somewhere else, and the peer's other replicas stay where they are.
func TestAQuarantinedReplicaIsMoved(t *testing.T) {
	c := newKept(t)
	for _, name := range []string{"p2", "p3", "p4"} {
		c.join(name)
	}
	c.keep("four", 1, have(3, 3))
	where, err := c.any().Where(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	victim := ""
	for _, m := range where.Members {
		if m.Peer != where.Leader {
			victim = m.Peer
		}
	}
	c.put("before")
	c.crash(victim)
	fault := func(kind consensus.FaultKind) consensus.Fault {
		return consensus.Fault{At: time.Now(), Shard: 1, Replica: replicaOn(where, victim), Kind: kind, What: "it broke"}
	}
	faults, err := json.Marshal([]consensus.Fault{
		fault("renewed"), fault(consensus.FaultApply), fault(consensus.FaultApply), fault(consensus.FaultRaft),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dirs[victim], "faults.json"), faults, 0o600); err != nil {
		t.Fatal(err)
	}
	c.open(victim)
	c.get("before")
	others := map[uint64]uint64{}
	c.keep("it is left alone, and says so", 1, func(shards map[uint64]consensus.ShardStatus) error {
		for _, s := range c.hosts[victim].Status() {
			others[s.Shard] = s.ReplicaID
			if s.Shard == 1 && (s.Local || !strings.Contains(s.Quarantine, "it broke") || !strings.Contains(s.Trouble, "not replaced again by itself")) {
				return fmt.Errorf("shard 1 is %+v", s)
			}
		}
		return have(3, 3)(shards)
	})
	c.ahead += 50 * time.Second
	c.keep("nothing moves before the hysteresis is over", 3, func(shards map[uint64]consensus.ShardStatus) error {
		if replicaOn(shards[1], victim) == 0 {
			t.Fatalf("its replica was moved: %+v", shards[1].Members)
		}
		return nil
	})
	elsewhere := func(now consensus.ShardStatus) bool {
		return slices.ContainsFunc(now.Members, func(m consensus.Member) bool { return replicaOn(where, m.Peer) == 0 })
	}
	c.ahead += 11 * time.Second
	c.keep("it is moved", 3, func(shards map[uint64]consensus.ShardStatus) error {
		// The peer may have been given another one meanwhile, of this shard too: replicas are evened out.
		if replicaOn(shards[1], victim) == replicaOn(where, victim) || !elsewhere(shards[1]) || voters(shards[1]) != 3 {
			return fmt.Errorf("shard 1 has %+v", shards[1].Members)
		}
		if left := c.hosts[victim].Quarantined(); len(left) > 0 {
			return fmt.Errorf("quarantined are %v", left)
		}
		return nil
	})
	c.get("before")
	for _, s := range c.hosts[victim].Status() {
		if s.Shard != 1 && s.Local && others[s.Shard] != 0 && s.ReplicaID != others[s.Shard] {
			t.Errorf("its replica of shard %d was replaced too", s.Shard)
		}
	}
}
