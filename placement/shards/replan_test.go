package shards

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// pendingFor is a shard on its way to an assignment: assigned and group in the notation of members.
func pendingFor(assigned, group string) Assignment {
	a := Assignment{Shard: 1, Replicas: members(assigned), Busy: true, Group: &Group{}}
	has := members(group)
	for _, r := range has {
		if r.Voter {
			a.Group.Voters = append(a.Group.Voters, r.Peer)
		}
	}
	for _, r := range a.Replicas {
		if !slices.Contains(has, r) {
			a.Group.Pending = append(a.Group.Pending, r.Peer)
		}
	}
	return a
}

// TestPendingReplicas: one whose peer dies before it has caught up is given to another, or given up where that costs no voter.
func TestPendingReplicas(t *testing.T) {
	tests := []struct {
		name, assigned, group string
		living, leaving       string // peers
		down                  time.Duration
		want, reason          string
	}{
		{name: "it lives", assigned: "A B C", group: "A B c", living: "a b c d", want: ""},
		{name: "down briefly", assigned: "A B C", group: "A B c", living: "a b d", down: 59 * time.Second, want: ""},
		{name: "down for long", assigned: "A B C", group: "A B c", living: "a b d", down: 61 * time.Second, want: "A B D", reason: "peer c is dead and had not caught up"},
		{name: "nobody knows it", assigned: "A B C", group: "A B", living: "a b d", want: "A B D"},
		{name: "most of the assigned voters, none of those who vote", assigned: "A B C", group: "A b c", living: "a d e", want: "A C E"},
		{name: "one that does not vote", assigned: "A b", group: "A", living: "a d", want: "A d"},
		{name: "nobody to take it", assigned: "A B C", group: "A B c", living: "a b", want: "A B"},
		{name: "nobody to take it, and the old one still votes", assigned: "A B D", group: "A B C d", living: "a b", want: ""},
		{name: "the old one has come back", assigned: "A B D", group: "A B C d", living: "a b c e", want: "A B C"},
		{name: "the old one leaves, another takes it", assigned: "A B D", group: "A B C d", living: "a b c e", leaving: "c", want: "A B E"},
		{name: "the old one leaves, nobody takes it", assigned: "A B D", group: "A B C d", living: "a b c", leaving: "c", want: "A B"},
		{name: "the last one wants to leave", assigned: "B", group: "A b", living: "a", leaving: "a", want: ""},
		{name: "no majority", assigned: "A B D", group: "A B C d", living: "a e f", want: ""},
		{name: "in its place, though dead", assigned: "A B C", group: "A b C", living: "a b d", want: ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			peers := peersOf(strings.Fields(test.living)...)
			for i := range peers {
				peers[i].Leaves = strings.Contains(test.leaving, peers[i].ID)
			}
			if test.down > 0 {
				peers = append(peers, Peer{ID: "c", Weight: 1, Down: now.Add(-test.down)})
			}
			got := ""
			for _, step := range Plan(peers, []Assignment{pendingFor(test.assigned, test.group)}, Options{Voters: 3}, now) {
				got += show(step.Want)
				if !strings.Contains(step.Reason, test.reason) {
					t.Errorf("the reason is %q", step.Reason)
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestAQuarantinedPendingReplica is replaced as one of a dead peer is, and its peer's vote does not count meanwhile.
func TestAQuarantinedPendingReplica(t *testing.T) {
	for ago, want := range map[time.Duration]string{59 * time.Second: "", 61 * time.Second: "A B D"} {
		a := pendingFor("A B C", "A B c")
		a.Broken = map[string]time.Time{"c": now.Add(-ago)}
		got := ""
		for _, step := range Plan(peersOf("a", "b", "c", "d"), []Assignment{a}, Options{Voters: 3}, now) {
			got += show(step.Want)
		}
		if got != want {
			t.Errorf("broken for %s: got %q, want %q", ago, got, want)
		}
	}
	a := pendingFor("A B D", "A B C d")
	a.Broken = map[string]time.Time{"c": now}
	if steps := Plan(peersOf("a", "c", "e"), []Assignment{a}, Options{Voters: 3}, now); len(steps) > 0 {
		t.Errorf("one of three that can vote got %+v", steps)
	}
}

// world is a cluster whose raft groups follow their assignments as raft lets them: new replicas first do not vote, are promoted while
// their peer lives, and nobody is removed before all assigned are in their places.
type world struct {
	peers  []Peer
	shards []Assignment
	groups []map[string]bool // by shard: the peers in the group, and whether they vote
}

func (w *world) up(id string) bool {
	return slices.ContainsFunc(w.peers, func(p Peer) bool { return p.ID == id && p.Down.IsZero() })
}

func (w *world) decides(group map[string]bool) bool {
	living, voting := 0, 0
	for id, votes := range group {
		if votes {
			voting++
			if w.up(id) {
				living++
			}
		}
	}
	return living > voting/2
}

// follow makes the next change of a group, if there is one that its majority can agree on.
func (w *world) follow(i int) bool {
	a, group := w.shards[i], w.groups[i]
	if !w.decides(group) {
		return false
	}
	complete := true
	for _, r := range a.Replicas {
		votes, in := group[r.Peer]
		switch {
		case !in:
			group[r.Peer] = false
			return true
		case r.Voter && !votes && w.up(r.Peer):
			group[r.Peer] = true
			return true
		case r.Voter != votes:
			complete = false
		}
	}
	for id := range group {
		if assigned := slices.ContainsFunc(a.Replicas, func(r Replica) bool { return r.Peer == id }); complete && !assigned {
			delete(group, id)
			return true
		}
	}
	return false
}

// report is what a keeper sees of the shards.
func (w *world) report() []Assignment {
	all := slices.Clone(w.shards)
	for i := range all {
		group := &Group{}
		for id, votes := range w.groups[i] {
			if votes {
				group.Voters = append(group.Voters, id)
			}
		}
		for _, r := range all[i].Replicas {
			if votes, in := w.groups[i][r.Peer]; !in || votes != r.Voter {
				group.Pending = append(group.Pending, r.Peer)
			}
		}
		all[i].Group, all[i].Busy = group, len(group.Pending) > 0 || len(w.groups[i]) != len(all[i].Replicas)
	}
	return all
}

// keep takes a keeper's steps, each of which changes one replica and names no peer that is gone.
func (w *world) keep(t *rapid.T, now time.Time) bool {
	report := w.report()
	steps := Plan(w.peers, report, Options{Voters: 3}, now)
	for _, step := range steps {
		a := &w.shards[step.Shard]
		before := votersOf(a.Replicas)
		if seen := report[step.Shard]; seen.Busy {
			before = min(before, len(seen.Group.Voters))
		}
		if votersOf(step.Want) < before {
			t.Fatalf("%s → %s with %v: fewer voters (%s)", show(a.Replicas), show(step.Want), w.groups[step.Shard], step.Reason)
		}
		var added []string
		for _, r := range step.Want {
			if !slices.ContainsFunc(a.Replicas, func(old Replica) bool { return old.Peer == r.Peer }) {
				added = append(added, r.Peer)
			}
		}
		if len(added) > 1 || len(step.Want) == 0 || len(added) == 1 && !w.up(added[0]) {
			t.Fatalf("%s → %s: %s", show(a.Replicas), show(step.Want), step.Reason)
		}
		a.Replicas = step.Want
	}
	return len(steps) > 0
}

// TestBusyShardsEndUpOnTheLiving: peers die and come back at any moment of any change, never most voters of a shard at once. No group ever
// loses a voter for it, and once nothing fails any more, every shard gets three voters that live.
func TestBusyShardsEndUpOnTheLiving(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{}
		for i := range rapid.IntRange(5, 7).Draw(t, "peers") {
			w.peers = append(w.peers, Peer{ID: fmt.Sprintf("p%d", i), Zone: string(rune('x' + i%3)), Weight: 1})
		}
		for i := range 2 {
			w.shards = append(w.shards, Assignment{Shard: uint64(i), Replicas: []Replica{{Peer: "p0", Voter: true}}})
			w.groups = append(w.groups, map[string]bool{"p0": true})
		}
		at, floor := now, []int{1, 1}
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			at = at.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "seconds")) * time.Second)
			p := &w.peers[rapid.IntRange(0, len(w.peers)-1).Draw(t, "peer")]
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0:
				if w.losable(p.ID) {
					p.Down = at
				}
			case 1:
				p.Down = time.Time{}
			case 2, 3:
				w.keep(t, at)
			default:
				w.follow(rapid.IntRange(0, 1).Draw(t, "shard"))
			}
			w.checkVoters(t, floor)
		}
		at = at.Add(time.Hour)
		for round := 0; w.keep(t, at) || w.follow(0) || w.follow(1); round++ {
			w.checkVoters(t, floor)
			if round > 200 {
				t.Fatalf("no end: %+v in %+v", w.shards, w.groups)
			}
		}
		for i, group := range w.groups {
			for id, votes := range group {
				if !votes || !w.up(id) || len(group) != 3 {
					t.Fatalf("shard %d is assigned to %s and held by %v of %+v", i, show(w.shards[i].Replicas), group, w.peers)
				}
			}
		}
	})
}

// losable tells whether three peers and every group's majority outlive the loss of a peer.
func (w *world) losable(id string) bool {
	living := 0
	for _, p := range w.peers {
		if p.Down.IsZero() && p.ID != id {
			living++
		}
	}
	return living >= 3 && !slices.ContainsFunc(w.groups, func(group map[string]bool) bool {
		alive, voting := 0, 0
		for peer, votes := range group {
			if votes {
				voting++
				if peer != id && w.up(peer) {
					alive++
				}
			}
		}
		return alive <= voting/2
	})
}

// checkVoters demands that no group has fewer voters than it had when it was last as assigned. Those that a change brings beyond that, while
// old and new ones vote together, may go again.
func (w *world) checkVoters(t *rapid.T, floor []int) {
	for i, a := range w.report() {
		voting := len(a.Group.Voters)
		if voting < floor[i] {
			t.Fatalf("shard %d has %d voters, and had %d: assigned to %s, held by %v", i, voting, floor[i], show(a.Replicas), w.groups[i])
		}
		if !a.Busy {
			floor[i] = voting
		}
	}
}
