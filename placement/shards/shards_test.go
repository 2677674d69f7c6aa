package shards

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func peersOf(names ...string) []Peer {
	var peers []Peer
	for _, n := range names {
		peers = append(peers, Peer{ID: n, Weight: 1})
	}
	return peers
}

// members reads "A b" as voter a on peer A and a non-voting copy on peer b (upper case votes).
func members(text string) []Replica {
	var replicas []Replica
	for _, f := range strings.Fields(text) {
		replicas = append(replicas, Replica{Peer: strings.ToLower(f), Voter: f == strings.ToUpper(f)})
	}
	return replicas
}

func show(replicas []Replica) string {
	var parts []string
	for _, r := range replicas {
		name := r.Peer
		if r.Voter {
			name = strings.ToUpper(name)
		}
		parts = append(parts, name)
	}
	slices.SortFunc(parts, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return strings.Join(parts, " ")
}

// run applies steps until there are none and returns the memberships on the way.
func run(t interface{ Fatalf(string, ...any) }, peers []Peer, current []Assignment, o Options) (history []string) {
	for range 300 {
		steps := Plan(peers, current, o, now)
		if len(steps) == 0 {
			return history
		}
		for _, step := range steps {
			i := slices.IndexFunc(current, func(a Assignment) bool { return a.Shard == step.Shard })
			current[i].Replicas = step.Want
			history = append(history, show(step.Want))
		}
	}
	t.Fatalf("no end of steps: %v", history[len(history)-10:])
	return nil
}

func TestPaths(t *testing.T) {
	down := func(peers []Peer, id string, ago time.Duration) []Peer {
		for i := range peers {
			if peers[i].ID == id {
				peers[i].Down = now.Add(-ago)
			}
		}
		return peers
	}
	leaves := func(peers []Peer, id string) []Peer {
		for i := range peers {
			peers[i].Leaves = peers[i].Leaves || peers[i].ID == id
		}
		return peers
	}
	zones := func(peers []Peer, zones string) []Peer {
		for i := range peers {
			peers[i].Zone = zones[i : i+1]
		}
		return peers
	}
	tests := []struct {
		name   string
		peers  []Peer
		start  string
		voters int
		want   string // memberships on the way, by "|"
	}{
		{"one peer is enough for one", peersOf("a"), "A", 3, ""},
		{"the second holds a copy", peersOf("a", "b"), "A", 3, "A b"},
		{"the third makes three voters", peersOf("a", "b", "c"), "A b", 3, "A b c|A B C"},
		{"from one to three at once", peersOf("a", "b", "c"), "A", 3, "A c|A b c|A B C"},
		{"five on request", peersOf("a", "b", "c", "d", "e"), "A B C", 5, "A B C e|A B C d e|A B C D E"},
		{"three again on request", peersOf("a", "b", "c", "d", "e"), "A B C D E", 3, "A B C E|A B C"},
		{"the dead go first", down(peersOf("a", "b", "c", "d", "e"), "b", time.Hour), "A B C D E", 3, "A C D E|A C E"},
		{"four peers, five wanted: three", peersOf("a", "b", "c", "d"), "A B C", 5, ""},
		{"briefly down keeps its replica", down(peersOf("a", "b", "c", "d"), "c", 59*time.Second), "A B C", 3, ""},
		{"dead for long is replaced", down(peersOf("a", "b", "c", "d"), "c", 61*time.Second), "A B C", 3, "A B D"},
		{"dead, and nobody to replace it", down(peersOf("a", "b", "c"), "c", time.Hour), "A B C", 3, ""},
		{"a lost majority is not touched", down(down(peersOf("a", "b", "c", "d"), "c", time.Hour), "b", time.Hour), "A B C", 3, ""},
		{"leaving hands over", leaves(peersOf("a", "b", "c", "d"), "a"), "A B C", 3, "B C D"},
		{"leaving three", leaves(peersOf("a", "b", "c"), "c"), "A B C", 3, "A B|B|a B"},
		{"leaving two", leaves(peersOf("a", "b"), "a"), "A b", 3, "B"},
		{"zones first", zones(peersOf("a", "b", "c", "d"), "xxyz"), "A B C", 3, "B C D"},
		{"unknown peers are dead", peersOf("a", "b", "d"), "A B C", 3, "A B D"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := run(t, test.peers, []Assignment{{Shard: 1, Replicas: members(test.start)}}, Options{Voters: test.voters})
			if strings.Join(got, "|") != test.want {
				t.Errorf("got %q, want %q", strings.Join(got, "|"), test.want)
			}
		})
	}
}

// TestBrokenReplicas: a replica that is out of order on a living peer is waited for, then moved; it counts for no majority.
func TestBrokenReplicas(t *testing.T) {
	ago := func(d time.Duration, peers ...string) map[string]time.Time {
		broken := map[string]time.Time{}
		for _, peer := range peers {
			broken[peer] = now.Add(-d)
		}
		return broken
	}
	for name, c := range map[string]struct {
		peers  []Peer
		broken map[string]time.Time
		want   string
	}{
		"for less than the hysteresis": {peersOf("a", "b", "c", "d"), ago(59*time.Second, "b"), ""},
		"for longer":                   {peersOf("a", "b", "c", "d"), ago(61*time.Second, "b"), "A C D"},
		"and nobody to take it":        {peersOf("a", "b", "c"), ago(61*time.Second, "b"), ""},
		"a majority of them":           {peersOf("a", "b", "c", "d", "e"), ago(time.Hour, "a", "b"), ""},
		"beside one that is gone":      {peersOf("b", "c", "d", "e"), ago(time.Hour, "b"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			steps := Plan(c.peers, []Assignment{{Shard: 1, Replicas: members("A B C"), Broken: c.broken}}, Options{Voters: 3}, now)
			got := ""
			for _, step := range steps {
				got += show(step.Want)
				if !strings.Contains(step.Reason, "replica on peer b is quarantined") {
					t.Errorf("the reason is %q", step.Reason)
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestBusyShardsWait(t *testing.T) {
	current := []Assignment{{Shard: 1, Replicas: members("A"), Busy: true}}
	if steps := Plan(peersOf("a", "b", "c"), current, Options{Voters: 3}, now); len(steps) != 0 {
		t.Errorf("a busy shard got %+v", steps)
	}
}

func genPeers(t *rapid.T) []Peer {
	var peers []Peer
	for i := range rapid.IntRange(1, 9).Draw(t, "peers") {
		p := Peer{
			ID:     fmt.Sprintf("p%d", i),
			Zone:   rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "zone"),
			Weight: rapid.SampledFrom([]float64{1, 1, 1, 2, 0.5}).Draw(t, "weight"),
		}
		switch rapid.IntRange(0, 9).Draw(t, "fate") {
		case 0:
			p.Down = now.Add(-time.Hour)
		case 1:
			p.Down = now.Add(-time.Second)
		case 2:
			p.Leaves = true
		}
		peers = append(peers, p)
	}
	return peers
}

func genShards(t *rapid.T, peers []Peer) []Assignment {
	var current []Assignment
	for i := range rapid.IntRange(1, 9).Draw(t, "shards") {
		a := Assignment{Shard: uint64(i)}
		order := rapid.Permutation(peers).Draw(t, "order")
		for _, p := range order[:rapid.IntRange(1, min(5, len(order))).Draw(t, "replicas")] {
			a.Replicas = append(a.Replicas, Replica{Peer: p.ID, Voter: len(a.Replicas) == 0 || rapid.Bool().Draw(t, "votes")})
		}
		current = append(current, a)
	}
	return current
}

// TestStepsAreSafe: from any state, one step per shard changes one replica, leaves no fewer voters
// (unless somebody leaves or fewer are asked for), can be agreed on by the living, and the steps come to an end that a
// further call does not disturb.
func TestStepsAreSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := genPeers(t)
		current := genShards(t, peers)
		o := Options{Voters: rapid.SampledFrom([]int{3, 5}).Draw(t, "voters")}
		byID := map[string]Peer{}
		for _, p := range peers {
			byID[p.ID] = p
		}
		for round := 0; ; round++ {
			steps := Plan(peers, current, o, now)
			if len(steps) == 0 {
				break
			}
			if round > 200 {
				t.Fatalf("no end: %+v", steps)
			}
			seen := map[uint64]bool{}
			for _, step := range steps {
				if seen[step.Shard] {
					t.Fatalf("two steps for shard %d", step.Shard)
				}
				seen[step.Shard] = true
				i := slices.IndexFunc(current, func(a Assignment) bool { return a.Shard == step.Shard })
				checkStep(t, byID, current[i].Replicas, step, o)
				current[i].Replicas = step.Want
			}
		}
	})
}

func checkStep(t *rapid.T, byID map[string]Peer, before []Replica, step Step, o Options) {
	voters := func(rs []Replica) (n int) {
		for _, r := range rs {
			if r.Voter {
				n++
			}
		}
		return n
	}
	find := func(rs []Replica, id string) (Replica, bool) {
		i := slices.IndexFunc(rs, func(r Replica) bool { return r.Peer == id })
		if i < 0 {
			return Replica{}, false
		}
		return rs[i], true
	}
	var added, gone []string
	for _, r := range step.Want {
		old, was := find(before, r.Peer)
		if !was {
			added = append(added, r.Peer)
			if p := byID[r.Peer]; !p.Down.IsZero() || p.Leaves {
				t.Fatalf("%s: new replica on unfit peer %s", show(step.Want), r.Peer)
			}
		} else if old.Voter && !r.Voter {
			t.Fatalf("%s → %s demotes %s in place", show(before), show(step.Want), r.Peer)
		}
	}
	for _, r := range before {
		if _, stays := find(step.Want, r.Peer); !stays {
			gone = append(gone, r.Peer)
		}
	}
	if len(added) > 1 || len(gone) > 1 || step.Reason == "" {
		t.Fatalf("%s → %s (%s) changes too much", show(before), show(step.Want), step.Reason)
	}
	leaving := len(gone) == 1 && byID[gone[0]].Leaves
	if v := voters(step.Want); v == 0 || v < voters(before) && !leaving && voters(before) != 2 && v < o.Voters {
		t.Fatalf("%s → %s (%s): fewer voters", show(before), show(step.Want), step.Reason)
	}
}

// TestGrowthIsFair: in a cluster of equal peers, replicas end up within one of each other, in
// different zones, and adding one peer moves no more than its share.
func TestGrowthIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(3, 12).Draw(t, "peers")
		var peers []Peer
		for i := range n {
			peers = append(peers, Peer{ID: fmt.Sprintf("p%d", i), Weight: 1, Zone: string(rune('x' + i%3))})
		}
		var current []Assignment
		for i := range 9 {
			current = append(current, Assignment{Shard: uint64(i), Replicas: []Replica{{Peer: "p0", Voter: true}}})
		}
		run(t, peers, current, Options{Voters: 3})
		before := fairness(t, peers, current)
		peers = append(peers, Peer{ID: "new", Weight: 1, Zone: string(rune('x' + n%3))})
		moves := len(run(t, peers, current, Options{Voters: 3}))
		after := fairness(t, peers, current)
		if moves > after["new"]+2 {
			t.Fatalf("%d moves to give the new peer %d replicas: %v then %v", moves, after["new"], before, after)
		}
	})
}

// TestOneToNineAndBack: peers in three zones join one by one and leave again, in any order, one step carried
// out at a time. At every size the cluster settles with all the voters it can have, in as many zones as there
// are, evenly spread, leaders too; on the way each step is safe and no shard ever has fewer voters than it had,
// as long as three peers are left.
func TestOneToNineAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{Voters: rapid.SampledFrom([]int{3, 5}).Draw(t, "voters")}
		var peers []Peer
		var current []Assignment
		for i := range 9 {
			current = append(current, Assignment{Shard: uint64(i), Replicas: []Replica{{Peer: "p0", Voter: true}}, Leader: "p0"})
		}
		for i := range 9 {
			peers = append(peers, Peer{ID: fmt.Sprintf("p%d", i), Weight: 1, Zone: string(rune('x' + i%3))})
			settle(t, peers, current, o)
		}
		for len(peers) > 1 {
			i := rapid.IntRange(0, len(peers)-1).Draw(t, "leaves")
			peers[i].Leaves = true
			walk(t, peers, current, o)
			for _, a := range current {
				if slices.ContainsFunc(a.Replicas, func(r Replica) bool { return r.Peer == peers[i].ID }) {
					t.Fatalf("%s still holds shard %d: %s", peers[i].ID, a.Shard, show(a.Replicas))
				}
			}
			peers = slices.Delete(peers, i, i+1)
			settle(t, peers, current, o)
		}
	})
}

// walk carries steps out one at a time, in any order, and leaders over as planned.
func walk(t *rapid.T, peers []Peer, current []Assignment, o Options) {
	byID := map[string]Peer{}
	staying := 0
	for _, p := range peers {
		byID[p.ID] = p
		if !p.Leaves {
			staying++
		}
	}
	for round := 0; ; round++ {
		steps := Plan(peers, current, o, now)
		if len(steps) == 0 {
			break
		}
		if round > 500 {
			t.Fatalf("no end: %+v", steps)
		}
		step := steps[rapid.IntRange(0, len(steps)-1).Draw(t, "step")]
		a := &current[slices.IndexFunc(current, func(a Assignment) bool { return a.Shard == step.Shard })]
		checkStep(t, byID, a.Replicas, step, o)
		if before, after := votersOf(a.Replicas), votersOf(step.Want); staying >= o.Voters && after < before {
			t.Fatalf("%s → %s with %d peers left (%s)", show(a.Replicas), show(step.Want), staying, step.Reason)
		}
		a.Replicas = step.Want
		if !slices.Contains(a.Replicas, Replica{Peer: a.Leader, Voter: true}) {
			a.Leader = a.Replicas[slices.IndexFunc(a.Replicas, func(r Replica) bool { return r.Voter })].Peer
		}
	}
	for round := 0; ; round++ {
		transfers := PlanLeaders(peers, current, now)
		if len(transfers) == 0 {
			return
		}
		if round > 50 {
			t.Fatalf("leaders find no end: %+v", transfers)
		}
		for _, tr := range transfers {
			current[slices.IndexFunc(current, func(a Assignment) bool { return a.Shard == tr.Shard })].Leader = tr.To
		}
	}
}

func settle(t *rapid.T, peers []Peer, current []Assignment, o Options) {
	walk(t, peers, current, o)
	voters, copies := sizes(len(peers), o.Voters)
	zones := map[string]int{}
	zoneOf, load, led := map[string]string{}, map[string]int{}, map[string]int{}
	for _, p := range peers {
		zones[p.Zone]++
		zoneOf[p.ID], load[p.ID], led[p.ID] = p.Zone, 0, 0
	}
	for _, a := range current {
		in := map[string]bool{}
		for _, r := range a.Replicas {
			load[r.Peer]++
			in[zoneOf[r.Peer]] = true
		}
		led[a.Leader]++
		// Voters that a smaller cluster would not get stay: 4 on 4 peers after one of 5 left.
		if v := votersOf(a.Replicas); v < voters || len(a.Replicas) < copies || len(in) < min(copies, len(zones)) {
			t.Fatalf("%d peers: shard %d is %s", len(peers), a.Shard, show(a.Replicas))
		}
	}
	for _, p := range peers {
		for _, q := range peers {
			if p.Zone == q.Zone && load[p.ID] > load[q.ID]+1 {
				t.Fatalf("%d peers of zone %s: %v", len(peers), p.Zone, load)
			}
			if len(peers) >= 3 && led[p.ID] > led[q.ID]+1 {
				t.Fatalf("%d peers lead %v", len(peers), led)
			}
		}
	}
}

func votersOf(replicas []Replica) (n int) {
	for _, r := range replicas {
		if r.Voter {
			n++
		}
	}
	return n
}

func fairness(t *rapid.T, peers []Peer, current []Assignment) map[string]int {
	load := map[string]int{}
	zone := map[string]string{}
	inZone := map[string]int{}
	for _, p := range peers {
		load[p.ID], zone[p.ID] = 0, p.Zone
		inZone[p.Zone]++
	}
	for _, a := range current {
		zones := map[string]bool{}
		for _, r := range a.Replicas {
			load[r.Peer]++
			zones[zone[r.Peer]] = true
		}
		if len(a.Replicas) != 3 || len(zones) != 3 {
			t.Fatalf("shard %d is on %s", a.Shard, show(a.Replicas))
		}
	}
	// Each zone carries one replica of every shard, spread over its peers.
	for _, p := range peers {
		share := float64(len(current)) / float64(inZone[p.Zone])
		if float64(load[p.ID]) > share+1 || float64(load[p.ID]) < share-1 {
			t.Fatalf("%s carries %d, its share is %.1f: %v", p.ID, load[p.ID], share, load)
		}
	}
	return load
}

func TestLeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := genPeers(t)
		current := genShards(t, peers)
		led := map[string]int{}
		for i := range current {
			var voters []string
			for _, r := range current[i].Replicas {
				if r.Voter {
					voters = append(voters, r.Peer)
				}
			}
			current[i].Leader = rapid.SampledFrom(voters).Draw(t, "leader")
			led[current[i].Leader]++
		}
		for round := 0; ; round++ {
			transfers := PlanLeaders(peers, current, now)
			if len(transfers) == 0 {
				return
			}
			if round > 50 {
				t.Fatalf("no end: %+v", transfers)
			}
			for _, tr := range transfers {
				a := &current[slices.IndexFunc(current, func(a Assignment) bool { return a.Shard == tr.Shard })]
				p := peers[slices.IndexFunc(peers, func(p Peer) bool { return p.ID == tr.To })]
				if a.Leader != tr.From || !slices.Contains(a.Replicas, Replica{Peer: tr.To, Voter: true}) || !p.Down.IsZero() || p.Leaves {
					t.Fatalf("bad transfer %+v of %+v", tr, a)
				}
				a.Leader = tr.To
			}
		}
	})
}

// TestLeadersStayAfterALoss: nothing is evened out while the lost peer's pods are replaced, but who should lead nothing hands over.
func TestLeadersStayAfterALoss(t *testing.T) {
	plan := func(lost time.Duration, leaves bool) int {
		peers := []Peer{{ID: "a", Weight: 1, Leaves: leaves}, {ID: "b", Weight: 1}, {ID: "c", Weight: 1, Down: now.Add(-lost)}}
		var current []Assignment
		for shard := range uint64(4) {
			current = append(current, Assignment{Shard: shard, Leader: "a", Replicas: []Replica{
				{Peer: "a", Voter: true}, {Peer: "b", Voter: true}, {Peer: "c", Voter: true},
			}})
		}
		return len(PlanLeaders(peers, current, now))
	}
	if n := plan(calmAfterLoss-time.Second, false); n != 0 {
		t.Errorf("%d leaders move right after a peer was lost", n)
	}
	if n := plan(calmAfterLoss, false); n != 2 {
		t.Errorf("%d leaders move once that is over", n)
	}
	if n := plan(time.Second, true); n != 4 {
		t.Errorf("%d leaders move off a peer that should lead nothing", n)
	}
}

// TestLeadersAreEvenedOutAtTheSecondLook: unless somebody should lead nothing.
func TestLeadersAreEvenedOutAtTheSecondLook(t *testing.T) {
	voters := []Replica{{Peer: "a", Voter: true}, {Peer: "b", Voter: true}}
	current := []Assignment{{Shard: 1, Leader: "a", Replicas: voters}, {Shard: 2, Leader: "a", Replicas: voters}}
	var leaders Leaders
	for look, want := range []int{0, 1, 1} {
		if due := leaders.Due([]Peer{{ID: "a", Weight: 1}, {ID: "b", Weight: 1}}, current, now); len(due) != want {
			t.Errorf("look %d: %+v", look+1, due)
		}
	}
	if due := (&Leaders{}).Due([]Peer{{ID: "a", Weight: 1, Leaves: true}, {ID: "b", Weight: 1}}, current, now); len(due) != 2 {
		t.Errorf("off a peer that leaves: %+v", due)
	}
}
