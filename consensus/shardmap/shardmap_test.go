package shardmap

import (
	"fmt"
	"maps"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// group is a raft group as dragonboat keeps it: what it accepts and refuses.
type group struct {
	Members
	removed map[uint64]bool
	leader  uint64
}

func (g *group) take(t *rapid.T, s Step, alive func(peer string) bool) {
	peers := map[string]bool{}
	for _, p := range g.Voters {
		peers[p] = true
	}
	for _, p := range g.NonVoters {
		peers[p] = true
	}
	switch s.Kind {
	case AddNonVoter:
		if g.removed[s.Replica] || peers[s.Peer] {
			t.Fatalf("raft refuses %+v in %+v", s, g)
		}
		g.NonVoters[s.Replica] = s.Peer
	case Promote:
		if g.NonVoters[s.Replica] != s.Peer || !alive(s.Peer) {
			t.Fatalf("bad promotion %+v in %+v", s, g)
		}
		delete(g.NonVoters, s.Replica)
		g.Voters[s.Replica] = s.Peer
	case Remove:
		if s.Replica == g.leader || (len(g.Voters) == 1 && g.Voters[s.Replica] != "") {
			t.Fatalf("bad removal %+v in %+v", s, g)
		}
		delete(g.Voters, s.Replica)
		delete(g.NonVoters, s.Replica)
		g.removed[s.Replica] = true
	case TransferAway:
		if g.Voters[s.Replica] == "" || s.Replica == g.leader {
			t.Fatalf("bad transfer %+v in %+v", s, g)
		}
		g.leader = s.Replica
	}
}

func drawWants(t *rapid.T) []Want {
	peers := rapid.Permutation([]string{"a", "b", "c", "d", "e"}).Draw(t, "peers")
	want := make([]Want, rapid.IntRange(1, 5).Draw(t, "size"))
	for i := range want {
		want[i] = Want{Peer: peers[i], Voter: i == 0 || rapid.IntRange(0, 3).Draw(t, "votes") > 0}
	}
	return want
}

// TestGroupsReachTheirAssignments walks groups through one assignment after the
// other, with wiped disks in between.
func TestGroupsReachTheirAssignments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := Found(1, "a", "disk-a")
		g := &group{
			Members: Members{Voters: map[uint64]string{1: "a"}, NonVoters: map[uint64]string{}},
			removed: map[uint64]bool{}, leader: 1,
		}
		everyone := func(string) bool { return true }
		for range rapid.IntRange(1, 5).Draw(t, "assignments") {
			if rapid.IntRange(0, 4).Draw(t, "wipe") == 0 && len(g.Voters) > 1 {
				victim := rapid.SampledFrom(a.Replicas).Draw(t, "victim")
				if victim.ID != g.leader {
					a, _ = a.Claim(victim.Peer, "new disk "+fmt.Sprint(a.Next))
				}
			} else {
				a = a.Place(drawWants(t), g.Members)
			}
			walk(t, a, g, everyone)
			for _, r := range a.Replicas {
				if (g.Voters[r.ID] == r.Peer) != r.Voter || (g.NonVoters[r.ID] == r.Peer) == r.Voter {
					t.Fatalf("settled at %+v, assigned %+v", g, a)
				}
			}
			if len(g.Voters)+len(g.NonVoters) != len(a.Replicas) {
				t.Fatalf("settled at %+v, assigned %+v", g, a)
			}
		}
	})
}

func walk(t *rapid.T, a Assignment, g *group, alive func(string) bool) {
	for range 50 {
		before := len(g.Voters)
		s := Next(a, g.Members, g.leader, func(id uint64) bool { return alive(g.NonVoters[id]) })
		if s.Kind == Settled {
			return
		}
		g.take(t, s, alive)
		if len(g.Voters) < before && len(g.Voters) < votersOf(a) && !replacedInPlace(a, s) {
			t.Fatalf("%+v left %d voters, %d are assigned", s, len(g.Voters), votersOf(a))
		}
	}
	t.Fatalf("%+v never settles at %+v", g, a)
}

func votersOf(a Assignment) int {
	n := 0
	for _, r := range a.Replicas {
		if r.Voter {
			n++
		}
	}
	return n
}

func replacedInPlace(a Assignment, s Step) bool {
	r, ok := a.Of(s.Peer)
	return ok && r.ID != s.Replica
}

// TestADeadNewcomerCostsNoVoter: nobody is removed before a replacement votes.
func TestADeadNewcomerCostsNoVoter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := Found(1, "a", "").Place([]Want{{"a", true}, {"b", true}, {"c", true}}, Members{})
		g := &group{
			Members: Members{Voters: map[uint64]string{1: "a", 2: "b", 3: "c"}, NonVoters: map[uint64]string{}},
			removed: map[uint64]bool{}, leader: 1,
		}
		walk(t, a.Place([]Want{{"a", true}, {"b", true}, {"dead", true}}, g.Members), g, func(p string) bool { return p != "dead" })
		if want := map[uint64]string{1: "a", 2: "b", 3: "c"}; !maps.Equal(g.Voters, want) {
			t.Fatalf("voters are %v", g.Voters)
		}
	})
}

// TestAPeerPlacedAgainKeepsItsReplica while its group still has it: a change that cannot end is taken back without anybody's vote lost.
func TestAPeerPlacedAgainKeepsItsReplica(t *testing.T) {
	group := Members{Voters: map[uint64]string{1: "a", 2: "b", 3: "c"}, NonVoters: map[uint64]string{}}
	three := Found(1, "a", "").Place([]Want{{"a", true}, {"b", true}, {"c", true}}, Members{})
	three, _ = three.Claim("c", "disk-c")
	changed := three.Place([]Want{{"a", true}, {"b", true}, {"d", true}}, group)
	group.NonVoters[4] = "d"
	elsewhere := changed.Place([]Want{{"a", true}, {"b", true}, {"e", true}}, group)
	if want := []Replica{{Peer: "d", ID: 4, Voter: true}, {Peer: "c", ID: 3, Voter: true, Disk: "disk-c"}}; !reflect.DeepEqual(elsewhere.Former, want) {
		t.Errorf("former are %+v", elsewhere.Former)
	}
	claimed, _ := elsewhere.Claim("e", "disk-e")
	for name, a := range map[string]Assignment{"changed": changed, "changed twice": elsewhere, "claimed": claimed, "renewed": elsewhere.Renew(5)} {
		back := a.Place([]Want{{"a", true}, {"b", true}, {"c", true}}, group)
		if !reflect.DeepEqual(back.Replicas, three.Replicas) {
			t.Errorf("%s and taken back: %+v, was %+v", name, back.Replicas, three.Replicas)
		}
		if r, _ := a.Place([]Want{{"c", true}}, Members{}).Of("c"); r.ID != a.Next {
			t.Errorf("%s: after the group has removed it, c has replica %d, next was %d", name, r.ID, a.Next)
		}
		if read, err := Decode(Key(1), a.Encode()); err != nil || !reflect.DeepEqual(read, a) {
			t.Errorf("%s: %+v reads back as %+v, %v", name, a, read, err)
		}
	}
	if wiped, changed := changed.Place([]Want{{"a", true}, {"b", true}, {"c", true}}, group).Claim("c", "another disk"); !changed || wiped.Replicas[2].ID == 3 {
		t.Errorf("with another disk it keeps its vote: %+v", wiped)
	}
	if settled := elsewhere.Place([]Want{{"a", true}}, Members{Voters: map[uint64]string{1: "a", 2: "b", 5: "e"}}); len(settled.Former) != 2 {
		t.Errorf("what the group has removed is remembered, or what it has is not: %+v", settled.Former)
	}
}

func TestPendingReplicas(t *testing.T) {
	a := Assignment{Shard: 1, Next: 9, Replicas: []Replica{
		{Peer: "a", ID: 1, Voter: true}, {Peer: "b", ID: 2, Voter: true}, {Peer: "c", ID: 8, Voter: true}, {Peer: "d", ID: 4},
	}}
	group := Members{Voters: map[uint64]string{1: "a", 3: "c"}, NonVoters: map[uint64]string{2: "b"}}
	if pending := a.Pending(group); !reflect.DeepEqual(pending, []string{"b", "c", "d"}) || a.SettledIn(group) {
		t.Errorf("pending are %v; settled: %v", pending, a.SettledIn(group))
	}
	group = Members{Voters: map[uint64]string{1: "a", 2: "b", 3: "c", 8: "c"}, NonVoters: map[uint64]string{4: "d"}}
	if pending := a.Pending(group); len(pending) > 0 || a.SettledIn(group) {
		t.Errorf("with one to be removed, pending are %v; settled: %v", pending, a.SettledIn(group))
	}
	delete(group.Voters, 3)
	if !a.SettledIn(group) {
		t.Error("a group of exactly the assigned replicas is not settled")
	}
}

func TestReplicaIDsAreNeverReused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, owner := Found(1, "a", "d"), map[uint64]string{}
		for range 20 {
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				a = a.Place(drawWants(t), Members{})
			case 1:
				a, _ = a.Claim(a.Replicas[0].Peer, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "disk"))
			case 2:
				a = a.Renew(a.Replicas[0].ID)
			}
			for _, r := range a.Replicas {
				if was, known := owner[r.ID]; known && was != r.Peer {
					t.Fatalf("replica %d was of %s, is of %s", r.ID, was, r.Peer)
				}
				owner[r.ID] = r.Peer
			}
			back, err := Decode(Key(1), a.Encode())
			if err != nil || !reflect.DeepEqual(back, a) {
				t.Fatalf("%+v reads back as %+v, %v", a, back, err)
			}
		}
	})
}

func TestDamagedAssignmentsAreRefused(t *testing.T) {
	good := Found(3, "a", "d")
	for name, c := range map[string]struct{ key, value string }{
		"key of something else": {"/shoal/namespaces/3", string(good.Encode())},
		"no number":             {Prefix + "x", string(good.Encode())},
		"another shard's":       {Key(4), string(good.Encode())},
		"no JSON":               {Key(3), "{"},
		"reused ID":             {Key(3), `{"shard":3,"next":9,"replicas":[{"peer":"a","replicaID":1},{"peer":"b","replicaID":1}]}`},
		"ID of the future":      {Key(3), `{"shard":3,"next":2,"replicas":[{"peer":"a","replicaID":2}]}`},
		"former in use":         {Key(3), `{"shard":3,"next":9,"replicas":[{"peer":"a","replicaID":1}],"former":[{"peer":"b","replicaID":1}]}`},
		"former of the future":  {Key(3), `{"shard":3,"next":2,"replicas":[{"peer":"a","replicaID":1}],"former":[{"peer":"b","replicaID":2}]}`},
		"no peer":               {Key(3), `{"shard":3,"next":2,"replicas":[{"replicaID":1}]}`},
	} {
		if _, err := Decode(c.key, []byte(c.value)); err == nil {
			t.Errorf("%s was taken for an assignment", name)
		}
	}
}

func TestNamespacesSpreadAndStay(t *testing.T) {
	m := Map{DataShards: []uint64{1, 2, 3, 4, 5, 6, 7, 8}}
	count := map[uint64]int{}
	for i := range 8000 {
		count[m.ShardFor(fmt.Sprint("ns-", i))]++
	}
	for _, shard := range m.DataShards {
		if n := count[shard]; n < 800 || n > 1200 {
			t.Errorf("shard %d has %d of 8000 namespaces", shard, n)
		}
	}
	grown, moved := Map{DataShards: append(m.DataShards, 9)}, 0
	for i := range 8000 {
		ns := fmt.Sprint("ns-", i)
		before, after := m.ShardFor(ns), grown.ShardFor(ns)
		if before != after {
			moved++
			if after != 9 {
				t.Fatalf("%s moved from %d to %d", ns, before, after)
			}
		}
	}
	if moved < 600 || moved > 1200 {
		t.Errorf("%d of 8000 namespaces moved to a ninth shard", moved)
	}
	grown.Recorded = map[string]uint64{"ns-1": 7}
	if got := grown.ShardFor("ns-1"); got != 7 {
		t.Errorf("the record says 7, got %d", got)
	}
	if got := grown.ShardFor(""); got != 0 {
		t.Errorf("the cluster scope is on shard %d", got)
	}
	ns, shard, ok := DecodeNamespace(NamespaceKey("kube-system"), EncodeNamespace(4))
	if ns != "kube-system" || shard != 4 || !ok {
		t.Errorf("record reads back as %s, %d, %v", ns, shard, ok)
	}
}
