// Package shards decides which peer holds which replica of which shard, and who leads.
//
// The rules: one voter on one peer; one voter and one non-voting copy on two; three voters (five
// on request) as soon as there are peers for them. Replicas of a shard are in different zones
// where they can be, peers carry replicas in proportion to their weights, and nothing moves
// without need: a peer that is down briefly keeps its replicas, and each step changes one replica
// of a shard. A replica that is out of order though its peer lives goes elsewhere when it has not
// come back within the same time. Voters are never fewer after a step than before, except when a peer leaves on its
// own wish and nobody can take its place, or when fewer are asked for than there are.
//
// A change that is under way is let finish, unless it cannot: a new replica that has not caught up when its peer is
// dead never will, so another takes its place.
package shards

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"time"
)

// Peer is a machine that can hold replicas.
type Peer struct {
	ID     string
	Zone   string
	Weight float64   // share of replicas it should get: 1 for an ordinary peer, 0 for none
	Down   time.Time // since when it is dead; zero if it is alive
	Leaves bool      // it wants to give up its replicas
}

// Replica is one shard's copy on one peer.
type Replica struct {
	Peer  string
	Voter bool
}

// Assignment is who holds one shard.
type Assignment struct {
	Shard    uint64
	Replicas []Replica
	Leader   string // where known
	Busy     bool   // a change is under way: no other may begin, unless Group shows that this one cannot end
	// Group is what a busy shard's raft group has come to; nil if nobody could tell, and then the shard is left alone.
	Group *Group
	// Broken says since when replicas on living peers have been out of order, by peer. They keep
	// their places for the hysteresis, as those of dead peers do, and decide nothing meanwhile.
	Broken map[string]time.Time
}

// Group is a raft group on its way to its assignment. Peers are in any order.
type Group struct {
	Voters  []string // the peers whose replicas vote now, assigned or not
	Pending []string // the assigned peers whose replicas are not in the group yet, or do not vote yet though they are to
}

// Options are the numbers of Plan.
type Options struct {
	Voters     int           // wanted where there are peers enough: 3, or 5
	Hysteresis time.Duration // how long a peer must be dead before it is replaced; 0 means 60 s
}

// Step is one wanted membership change of one shard.
type Step struct {
	Shard uint64
	// Want is the whole membership after the step, sorted by peer. Whoever carries it out adds a
	// new replica as non-voting, lets it catch up, promotes it, and only then removes another.
	Want   []Replica
	Reason string
}

// Plan returns at most one step per shard, and for busy shards none but what takes the place of a
// pending replica that will never catch up. A replica whose peer is not in peers counts as dead for good.
//
// Steps that repair come for all shards at once; steps that only even out load or zones come one
// at a time, so that a cluster that has just grown is not all copying at once.
func Plan(peers []Peer, current []Assignment, o Options, now time.Time) []Step {
	p := newPlanner(peers, current, o, now)
	var steps []Step
	busy := false
	for i := range p.shards {
		s := &p.shards[i]
		if s.busy {
			busy = true
		}
		if step, ok := p.next(s); ok {
			steps = append(steps, step)
		}
	}
	if len(steps) > 0 || busy {
		return steps
	}
	if step, ok := p.improve(); ok {
		steps = append(steps, step)
	}
	return steps
}

// next is the step that a shard needs, if any and if it can be taken.
func (p *planner) next(s *shard) (Step, bool) {
	switch {
	case !p.canDecide(s):
		return Step{}, false // it has lost its majority, or nobody knows: no change can be agreed on
	case s.busy:
		return p.replan(s)
	default:
		return p.repair(s)
	}
}

// state is what a peer can be used for.
type state int

const (
	dead    state = iota // for longer than the hysteresis, or unknown
	leaving              // alive, but to be freed
	shaky                // down for a while: keeps what it has, gets nothing
	alive
)

type planner struct {
	peers  map[string]*peer
	ids    []string // sorted
	shards []shard
	voters int // wanted per shard, on so many peers
	copies int // wanted per shard, voting or not
	most   int // wanted per shard, on any number of peers
	// patience is over for what has been dead or broken since before.
	patience time.Time
}

type peer struct {
	Peer
	state state
	load  int // replicas
}

type shard struct {
	id       uint64
	replicas []Replica
	voting   []string // peers: of a busy shard those that vote now, of another those assigned to
	pending  []string // peers, of a busy shard only
	busy     bool
	broken   map[string]time.Time
}

func newPlanner(peers []Peer, current []Assignment, o Options, now time.Time) *planner {
	p := &planner{peers: map[string]*peer{}, patience: now.Add(-cmp.Or(o.Hysteresis, time.Minute))}
	usable := 0
	for _, q := range peers {
		entry := &peer{Peer: q, state: alive}
		switch {
		case !q.Down.IsZero() && q.Down.Before(p.patience):
			entry.state = dead
		case q.Leaves || q.Weight <= 0:
			entry.state = leaving
		case !q.Down.IsZero():
			entry.state = shaky
		}
		if entry.state >= shaky {
			usable++
		}
		p.peers[q.ID] = entry
		p.ids = append(p.ids, q.ID)
	}
	slices.Sort(p.ids)
	for _, a := range current {
		p.shards = append(p.shards, newShard(a))
		for _, r := range a.Replicas {
			p.peer(r.Peer).load++
		}
	}
	slices.SortFunc(p.shards, func(a, b shard) int { return cmp.Compare(a.id, b.id) })
	p.voters, p.copies = sizes(usable, o.Voters)
	p.most, _ = sizes(math.MaxInt, o.Voters)
	return p
}

func newShard(a Assignment) shard {
	s := shard{id: a.Shard, replicas: slices.Clone(a.Replicas), busy: a.Busy, broken: a.Broken}
	switch {
	case !a.Busy:
		for _, r := range a.Replicas {
			if r.Voter {
				s.voting = append(s.voting, r.Peer)
			}
		}
	case a.Group != nil:
		s.voting, s.pending = a.Group.Voters, a.Group.Pending
	}
	return s
}

// sizes is how many voters and how many copies in all a shard should have on so many peers.
func sizes(peers, wanted int) (voters, copies int) {
	switch {
	case peers <= 1:
		return 1, 1
	case peers == 2:
		return 1, 2
	default:
		voters = min(max(wanted, 3), peers)
		voters -= 1 - voters%2 // an even number tolerates no more losses than the odd one below
		return voters, voters
	}
}

// peer is a peer by ID; one that nobody knows is dead.
func (p *planner) peer(id string) *peer {
	if q := p.peers[id]; q != nil {
		return q
	}
	q := &peer{Peer: Peer{ID: id}, state: dead}
	p.peers[id] = q
	return q
}

func (s *shard) voters() int { return countVoters(s.replicas) }

func countVoters(replicas []Replica) int {
	n := 0
	for _, r := range replicas {
		if r.Voter {
			n++
		}
	}
	return n
}

func (s *shard) has(id string) bool {
	return slices.ContainsFunc(s.replicas, func(r Replica) bool { return r.Peer == id })
}

// canDecide tells whether enough of those who vote now live to agree on a change. Whoever is only
// assigned to vote does not count, neither for the majority nor against it.
func (p *planner) canDecide(s *shard) bool {
	living := 0
	for _, id := range s.voting {
		if _, broken := s.broken[id]; broken {
			continue
		}
		if q := p.peer(id); q.state == alive || q.state == leaving && q.Down.IsZero() {
			living++
		}
	}
	return living > len(s.voting)/2
}

// candidate is the best peer for a new replica of a shard: in a zone that has none of it yet,
// with the least load for its weight, and then by rendezvous hash, so that equal peers share
// shards evenly and the same way everywhere. except is left out of the zone count. A peer that
// still votes for an earlier assignment is none: its voter would have to go before the new replica.
func (p *planner) candidate(s *shard, except string) *peer {
	var best *peer
	for _, id := range p.ids {
		q := p.peers[id]
		if q.state != alive || s.has(id) || slices.Contains(s.voting, id) {
			continue
		}
		if best == nil || p.better(s, q, best, except) {
			best = q
		}
	}
	return best
}

func (p *planner) better(s *shard, a, b *peer, except string) bool {
	return cmp.Or(
		cmp.Compare(p.inZone(s, a.Zone, except), p.inZone(s, b.Zone, except)),
		cmp.Compare(float64(a.load+1)/a.Weight, float64(b.load+1)/b.Weight),
		-cmp.Compare(affinity(s.id, a), affinity(s.id, b)),
		cmp.Compare(a.ID, b.ID),
	) < 0
}

// inZone counts a shard's replicas in a zone, but for one peer.
func (p *planner) inZone(s *shard, zone, except string) int {
	n := 0
	for _, r := range s.replicas {
		if q := p.peer(r.Peer); q.Zone == zone && r.Peer != except && q.state >= shaky {
			n++
		}
	}
	return n
}

// affinity is the weighted rendezvous score of a peer for a shard; the highest wins.
// Source: Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005.
func affinity(shard uint64, q *peer) float64 {
	h := fnv.New64a()
	h.Write([]byte(strconv.FormatUint(shard, 10)))
	h.Write([]byte{0})
	h.Write([]byte(q.ID))
	unit := (float64(h.Sum64()>>11) + 0.5) / (1 << 53)
	return -q.Weight / math.Log(unit)
}

// step makes the shard's membership the wanted one, in the plan's own books too.
func (p *planner) step(s *shard, want []Replica, reason string) (Step, bool) {
	for _, r := range s.replicas {
		p.peer(r.Peer).load--
	}
	for _, r := range want {
		p.peer(r.Peer).load++
	}
	slices.SortFunc(want, func(a, b Replica) int { return cmp.Compare(a.Peer, b.Peer) })
	s.replicas = want
	return Step{Shard: s.id, Want: want, Reason: reason}, true
}
