package shards

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// repair is the next step that a settled shard needs, if any: first replicas on dead or leaving peers,
// then too few copies, then copies that should vote, then too many.
func (p *planner) repair(s *shard) (Step, bool) {
	if bad, ok := p.misplaced(s); ok {
		if step, ok := p.replace(s, bad); ok {
			return step, true
		}
	}
	if len(s.replicas) < p.copies {
		if q := p.candidate(s, ""); q != nil {
			return p.step(s, append(slices.Clone(s.replicas), Replica{Peer: q.ID}), fmt.Sprintf("%d of %d copies", len(s.replicas), p.copies))
		}
	}
	if s.voters() < p.voters {
		return p.promote(s)
	}
	return p.trim(s)
}

// misplaced is the replica that should go first: of a dead peer, then one that is broken for good,
// then of a leaving peer.
func (p *planner) misplaced(s *shard) (Replica, bool) {
	for _, which := range []func(r Replica) bool{
		func(r Replica) bool { return p.peer(r.Peer).state == dead },
		func(r Replica) bool { return p.brokenForGood(s, r) },
		func(r Replica) bool { return p.peer(r.Peer).state == leaving },
	} {
		if i := slices.IndexFunc(s.replicas, which); i >= 0 {
			return s.replicas[i], true
		}
	}
	return Replica{}, false
}

func (p *planner) brokenForGood(s *shard, r Replica) bool {
	since, broken := s.broken[r.Peer]
	return broken && since.Before(p.patience)
}

// replace puts a replica on another peer, or takes it away if the shard can do without it.
func (p *planner) replace(s *shard, bad Replica) (Step, bool) {
	reason := p.whyGone(s, bad)
	if q := p.candidate(s, bad.Peer); q != nil {
		return p.step(s, with(without(s, bad.Peer), Replica{Peer: q.ID, Voter: bad.Voter}), reason)
	}
	// Nobody can take it over. A dead voter stays in the books: taking it out would not bring the
	// shard nearer to a majority that survives, and it may come back. Copies that do not vote
	// may go, and so may the replica of a peer that wants to leave, if another voter is left.
	rest := without(s, bad.Peer)
	if !bad.Voter || p.peer(bad.Peer).state == leaving && s.voters() > 1 {
		return p.step(s, rest, reason)
	}
	// The only voter leaves: a copy that does not vote yet succeeds it. Promotion comes first.
	if p.peer(bad.Peer).state == leaving {
		for i, r := range rest {
			if p.peer(r.Peer).state == alive {
				rest[i].Voter = true
				return p.step(s, rest, reason)
			}
		}
	}
	return Step{}, false
}

// whyGone is what is wrong with a misplaced replica.
func (p *planner) whyGone(s *shard, bad Replica) string {
	switch q := p.peer(bad.Peer); {
	case q.state == dead:
		return fmt.Sprintf("peer %s is dead", bad.Peer)
	case p.brokenForGood(s, bad):
		return fmt.Sprintf("the replica on peer %s is quarantined", bad.Peer)
	default:
		return fmt.Sprintf("peer %s leaves", bad.Peer)
	}
}

func without(s *shard, peer string) []Replica {
	return slices.DeleteFunc(slices.Clone(s.replicas), func(r Replica) bool { return r.Peer == peer })
}

func with(replicas []Replica, r Replica) []Replica { return append(replicas, r) }

// promote makes copies vote, as soon as there are enough for the wanted, odd number: going from
// one voter to two would make every single loss fatal.
func (p *planner) promote(s *shard) (Step, bool) {
	want := slices.Clone(s.replicas)
	missing := p.voters - s.voters()
	for i := range want {
		if missing > 0 && !want[i].Voter && p.peer(want[i].Peer).state == alive {
			want[i].Voter = true
			missing--
		}
	}
	if missing > 0 {
		return Step{}, false
	}
	return p.step(s, want, fmt.Sprintf("%d voters for %d", p.voters, s.voters()))
}

// trim takes away one copy too many that does not vote. Voters too many for the peers there are
// stay: they harm nobody, and fewer would be less safe. One exception are two voters that a
// leaving peer has left behind: with two, the loss of either is fatal, so one becomes a copy that
// does not vote, by going and coming back. The other are more voters than are asked for, which is
// somebody's wish.
func (p *planner) trim(s *shard) (Step, bool) {
	voters := s.voters()
	if voters == 2 && p.voters == 1 {
		drop := s.replicas[0].Peer
		for _, r := range s.replicas {
			if q, worst := p.peer(r.Peer), p.peer(drop); r.Voter && q.load > worst.load {
				drop = r.Peer
			}
		}
		return p.step(s, without(s, drop), "1 voter for 2")
	}
	if voters > p.most {
		drop := p.leastUseful(s)
		return p.step(s, without(s, drop), fmt.Sprintf("%d voters for %d", p.most, voters))
	}
	if len(s.replicas) > p.copies && len(s.replicas) > voters {
		for _, r := range s.replicas {
			if !r.Voter {
				return p.step(s, without(s, r.Peer), fmt.Sprintf("%d copies for %d", len(s.replicas), p.copies))
			}
		}
	}
	return Step{}, false
}

// leastUseful is the voter that a shard misses least: one that does not live, then one that shares
// its zone, then one on a full peer.
func (p *planner) leastUseful(s *shard) string {
	var least *peer
	for _, r := range s.replicas {
		q := p.peer(r.Peer)
		if r.Voter && (least == nil || cmp.Or(
			cmp.Compare(q.state, least.state),
			-cmp.Compare(p.inZone(s, q.Zone, ""), p.inZone(s, least.Zone, "")),
			-cmp.Compare(q.load, least.load),
			cmp.Compare(affinity(s.id, q), affinity(s.id, least)),
		) < 0) {
			least = q
		}
	}
	return least.ID
}

// improve is one move that evens out zones or load, if there is one. It must make things better
// by a whole replica, so that it is not undone by the next call.
func (p *planner) improve() (Step, bool) {
	zones := p.zones()
	for i := range p.shards {
		s := &p.shards[i]
		for _, r := range s.replicas {
			from := p.peer(r.Peer)
			if from.state != alive || !p.emptierZone(zones, s, r) {
				continue
			}
			return p.move(s, r, p.candidate(s, r.Peer), fmt.Sprintf("zone %q has another copy", from.Zone))
		}
	}
	return p.balance()
}

// zones counts the peers that can get replicas, by zone.
func (p *planner) zones() map[string]int {
	zones := map[string]int{}
	for _, id := range p.ids {
		if q := p.peers[id]; q.state == alive {
			zones[q.Zone]++
		}
	}
	return zones
}

// emptierZone tells whether a candidate for a replica's place is in a zone with fewer others of the shard: then the best candidate is.
// Zones are few where peers are many, and this is asked of every replica of every shard each time.
func (p *planner) emptierZone(zones map[string]int, s *shard, r Replica) bool {
	here := p.inZone(s, p.peer(r.Peer).Zone, r.Peer)
	if here == 0 {
		return false
	}
	for zone, peers := range zones {
		if p.inZone(s, zone, r.Peer) < here && peers > p.excluded(s, zone) {
			return true
		}
	}
	return false
}

// excluded counts the living peers of a zone that are no candidates for a shard: those that have a replica of it, or still vote.
func (p *planner) excluded(s *shard, zone string) int {
	n := 0
	count := func(id string) {
		if q := p.peer(id); q.state == alive && q.Zone == zone {
			n++
		}
	}
	for _, r := range s.replicas {
		count(r.Peer)
	}
	for _, id := range s.voting {
		if !s.has(id) {
			count(id)
		}
	}
	return n
}

// balance moves a replica from the fullest peer that has one to spare to an emptier one.
func (p *planner) balance() (Step, bool) {
	var best struct {
		shard *shard
		from  Replica
		to    *peer
		gain  float64
	}
	least := p.leastLoad()
	for i := range p.shards {
		s := &p.shards[i]
		for _, r := range s.replicas {
			from := p.peer(r.Peer)
			if from.state != alive || float64(from.load)/from.Weight-least <= best.gain+1e-9 {
				continue // nowhere is it better than what was found already
			}
			for _, id := range p.ids {
				q := p.peers[id]
				if q.state != alive || s.has(id) || p.inZone(s, q.Zone, r.Peer) > p.inZone(s, from.Zone, r.Peer) {
					continue
				}
				gain := float64(from.load)/from.Weight - float64(q.load+1)/q.Weight
				if gain > best.gain+1e-9 {
					best.shard, best.from, best.to, best.gain = s, r, q, gain
				}
			}
		}
	}
	if best.shard == nil {
		return Step{}, false
	}
	return p.move(best.shard, best.from, best.to, fmt.Sprintf("peer %s has more than its share", best.from.Peer))
}

// leastLoad is the load for its weight of the peer that would be the emptiest with one replica more.
func (p *planner) leastLoad() float64 {
	least := math.Inf(1)
	for _, id := range p.ids {
		if q := p.peers[id]; q.state == alive {
			least = min(least, float64(q.load+1)/q.Weight)
		}
	}
	return least
}

func (p *planner) move(s *shard, r Replica, to *peer, reason string) (Step, bool) {
	return p.step(s, with(without(s, r.Peer), Replica{Peer: to.ID, Voter: r.Voter}), reason)
}
