package model

import (
	"errors"
	"maps"
	"slices"
	"time"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// Times of consensus: its election timeout, after which a follower that hears no leader asks for votes and a leader that hears no majority
// steps down, and how long a message may be without an answer before it is sent again.
const (
	electionTimeout = 500 * time.Millisecond
	resend          = 250 * time.Millisecond
	beat            = 100 * time.Millisecond
	entriesAtOnce   = 128
)

var (
	errNoLeader  = errors.New("the shard has no leader that can be reached")
	errOvertaken = errors.New("another leader's entry has taken its place")
	errUnknown   = errors.New("no answer: whether it was done is not known")
	errDiskFull  = errors.New("the leader's disk is full")
)

// review looks at every shard after something has changed between peers. It stands for heartbeats: a voter that cannot hear its leader starts
// an election when its time is over, a leader that hears no majority steps down.
func (m *Model) review() {
	for _, s := range m.shards {
		s.review()
	}
}

func (s *shard) review() {
	for _, r := range s.replicas {
		switch {
		case r.gone || !r.node.active():
		case r.role == leading:
			r.checkQuorum()
			r.tick()
		default:
			r.waitForElection()
		}
	}
	s.settleLeader()
}

// settleLeader says who leads in everybody's eyes: the replica that works as the leader, in the highest term, and reaches a majority.
func (s *shard) settleLeader() {
	var best *replica
	for _, r := range s.replicas {
		if r.leads && !r.gone && r.node.active() && r.hasQuorum() && (best == nil || r.term > best.term) {
			best = r
		}
	}
	m := s.model
	switch {
	case best == nil:
		if s.leader != nil {
			m.emit(Event{Kind: EventLeaderless, Shard: s.number, Node: s.leader.name})
		}
		s.leader, s.leads = nil, nil
	case s.leads != best || s.term != best.term:
		s.leader, s.leads, s.term = best.node, best, best.term
		m.note("shard %d is led by %s in term %d", s.number, best.node.name, best.term)
		m.emit(Event{Kind: EventLeads, Shard: s.number, Node: best.node.name})
	}
}

// hasQuorum tells whether the replica reaches most voters of its group, itself included.
func (r *replica) hasQuorum() bool {
	reached := 0
	for id := range r.members.Voters {
		if other := r.shard.replica(id); other != nil && r.model.reaches(r.node, other.node) && r.model.hears(other.node, r.node) {
			reached++
		}
	}
	return reached > len(r.members.Voters)/2
}

// hearsLeader tells whether a leader of the replica's group makes itself heard.
func (r *replica) hearsLeader() bool {
	for _, other := range r.shard.replicas {
		if other != r && other.role == leading && !other.gone && other.term >= r.term && r.model.hears(other.node, r.node) &&
			isMember(other.members, r.id) {
			return true
		}
	}
	return false
}

// checkQuorum lets a leader that has no majority step down when it has had none for an election timeout.
func (r *replica) checkQuorum() {
	if r.electing || r.hasQuorum() {
		return
	}
	r.electing = true
	term := r.term
	r.node.do(r.model.between(electionTimeout, 2*electionTimeout), "check quorum", func() {
		r.electing = false
		if !r.gone && r.role == leading && r.term == term && !r.hasQuorum() {
			r.model.note("shard %d: %s hears no majority and steps down", r.shard.number, r.node.name)
			r.stepDown(r.term)
		}
	})
}

// waitForElection starts the clock of a voter that hears no leader.
func (r *replica) waitForElection() {
	if r.electing || !r.voter() || r.role == leading || r.hearsLeader() {
		return
	}
	r.electing = true
	r.node.do(r.model.between(electionTimeout, 2*electionTimeout), "election", func() {
		r.electing = false
		if !r.gone {
			r.campaign()
		}
	})
}

// campaign asks for votes if most would give theirs (PreVote: nobody raises the term in vain), and else waits again.
func (r *replica) campaign() {
	if r.role == leading || !r.voter() || r.hearsLeader() {
		return
	}
	would := 0
	for _, id := range sortedKeys(r.members.Voters) {
		other := r.shard.replica(id)
		if other == r || other != nil && r.model.reaches(r.node, other.node) && !other.hearsLeader() && other.role != leading &&
			(!other.newer(r.termAt(r.last()), r.last()) || r.model.cfg.bug == bugTwoVotes) {
			would++
		}
	}
	if would <= len(r.members.Voters)/2 {
		r.waitForElection()
		return
	}
	r.role, r.term, r.vote, r.votes = candidate, r.term+1, r.id, map[uint64]bool{r.id: true}
	term, lastTerm, last := r.term, r.termAt(r.last()), r.last()
	for _, id := range sortedKeys(r.members.Voters) {
		if other := r.shard.replica(id); other != nil && other != r {
			r.model.send(r.node, other.node, "request vote", func() { other.onVote(r, term, lastTerm, last) })
		}
	}
	r.count()
	r.waitForElection() // for the next one, if this one fails
}

// onVote answers a candidate.
func (r *replica) onVote(from *replica, term, lastTerm, last uint64) {
	if r.gone || term < r.term || r.hearsLeader() && r.model.cfg.bug != bugTwoVotes {
		return
	}
	if term > r.term {
		r.stepDown(term)
	}
	if (r.vote != 0 && r.vote != from.id || r.newer(lastTerm, last)) && r.model.cfg.bug != bugTwoVotes {
		return
	}
	r.vote = from.id
	r.sync(func() {
		r.model.send(r.node, from.node, "vote", func() {
			if from.role == candidate && from.term == term && !from.gone {
				from.votes[r.id] = true
				from.count()
			}
		})
	})
}

// count makes a candidate the leader once most voters are for it. The first entry of its term commits all those before it.
func (r *replica) count() {
	votes := 0
	for id := range r.members.Voters {
		if r.votes[id] {
			votes++
		}
	}
	if votes <= len(r.members.Voters)/2 {
		return
	}
	r.role, r.leads, r.progress = leading, false, map[uint64]*progress{}
	if !r.handed {
		r.model.outcome.Elections++
	}
	r.handed = false
	r.add(&entry{term: r.term})
	r.sync(r.advance)
	r.replicateAll()
}

// stepDown makes the replica a follower in a term.
func (r *replica) stepDown(term uint64) {
	if term > r.term {
		r.term, r.vote = term, 0
	}
	r.resign()
	r.role, r.votes = follower, nil
	r.waitForElection()
	r.shard.settleLeader()
}

// resign ends a leader's work.
func (r *replica) resign() {
	r.leads, r.turns, r.meta, r.progress = false, nil, nil, nil
	clear(r.waiting) // whoever waits will ask again
}

// propose appends an entry in the leader's name.
func (r *replica) propose(e *entry, done func(store.Result, error)) {
	if r.role != leading {
		done(store.Result{}, errNoLeader)
		return
	}
	if r.node.disk.full {
		done(store.Result{}, errDiskFull)
		return
	}
	e.term = r.term
	index := r.add(e)
	r.waiting[index] = &waiter{r.term, done}
	r.sync(r.advance)
	r.replicateAll()
}

// others are the members of the group but for the replica itself.
func (r *replica) others() []uint64 {
	ids := slices.Concat(sortedKeys(r.members.Voters), sortedKeys(r.members.NonVoters))
	return slices.DeleteFunc(ids, func(id uint64) bool { return id == r.id })
}

func (r *replica) replicateAll() {
	for _, id := range r.others() {
		r.replicate(id)
	}
}

// replicate sends another replica what it lacks, one message at a time.
func (r *replica) replicate(id uint64) {
	p := r.progress[id]
	if p == nil {
		p = &progress{next: r.last() + 1}
		if len(r.log) > 0 {
			p.next = r.last()
		}
		r.progress[id] = p
	}
	if p.inflight && r.model.now-p.sent < resend {
		return
	}
	other := r.shard.replica(id)
	if other == nil || !other.node.up {
		r.tick()
		return
	}
	// Only what this leader has applied itself: nobody is ever ahead of it, so reads and turns may trust its state.
	p.inflight, p.sent = true, r.model.now
	p.message++
	term, message := r.term, p.message
	if p.next <= r.base {
		s := r.snapshot()
		r.model.send(r.node, other.node, "snapshot", func() { other.onSnapshot(r, term, message, s) })
	} else {
		prev := p.next - 1
		prevTerm, commit := r.termAt(prev), r.applied
		entries := r.log[prev-r.base : min(uint64(len(r.log)), prev-r.base+entriesAtOnce)]
		r.model.send(r.node, other.node, "append", func() { other.onAppend(r, term, message, prev, prevTerm, entries, commit) })
	}
	r.tick()
}

// tick sends again what was not answered, and tells how far the log is committed, until there is nothing to say.
func (r *replica) tick() {
	if r.ticking || r.role != leading {
		return
	}
	r.ticking = true
	r.node.do(beat, "beat", func() {
		r.ticking = false
		if r.gone || r.role != leading {
			return
		}
		for _, id := range r.others() {
			if p := r.progress[id]; p == nil || p.match < r.last() || p.commit < r.applied {
				r.replicate(id)
				r.tick()
			}
		}
	})
}

// follows tells whether a message of a leader counts, and makes the replica its follower.
func (r *replica) follows(from *replica, term uint64) bool {
	switch {
	case r.gone:
		return false
	case term < r.term:
		later := r.term
		r.model.send(r.node, from.node, "later term", func() {
			if !from.gone && later > from.term {
				from.stepDown(later)
			}
		})
		return false
	case term > r.term || r.role != follower:
		r.stepDown(term)
	}
	return true
}

// onAppend takes a leader's entries in.
func (r *replica) onAppend(from *replica, term, message, prev, prevTerm uint64, entries []*entry, commit uint64) {
	if !r.follows(from, term) {
		return
	}
	if prev > r.last() || prev > r.base && r.termAt(prev) != prevTerm {
		hint := min(r.last(), prev-1)
		r.model.send(r.node, from.node, "reject", func() { from.onReject(r.id, term, prev, hint) })
		return
	}
	if len(entries) > 0 && r.node.disk.full {
		return
	}
	for i, e := range entries {
		index := prev + 1 + uint64(i)
		if index <= r.base || index <= r.last() && r.termAt(index) == e.term {
			continue
		}
		if index <= r.last() {
			r.truncate(index)
		}
		r.add(e)
	}
	through := prev + uint64(len(entries))
	r.sync(func() {
		if r.term != term || r.last() < through {
			return
		}
		knows := min(commit, through)
		r.learn(knows)
		r.model.send(r.node, from.node, "ack", func() { from.onAck(r.id, term, message, through, knows) })
	})
}

// truncate drops entries that another leader's replace.
func (r *replica) truncate(index uint64) {
	if index <= r.commit {
		r.model.violate(checkerReplicas, "shard %d: %s replaces the entry %d, though %d are committed", r.shard.number, r.node.name, index, r.commit)
		return
	}
	r.log = slices.Clone(r.log[:index-r.base-1])
	r.synced = min(r.synced, index-1)
}

func (r *replica) onSnapshot(from *replica, term, message uint64, s snapshot) {
	if !r.follows(from, term) {
		return
	}
	if s.index > r.commit {
		if r.node.disk.full {
			return
		}
		r.restore(s)
	}
	r.sync(func() {
		r.model.send(r.node, from.node, "ack", func() { from.onAck(r.id, term, message, s.index, s.index) })
	})
}

func (r *replica) onReject(id, term, prev, hint uint64) {
	p := r.progress[id]
	if r.gone || r.role != leading || r.term != term || p == nil || prev != p.next-1 {
		return
	}
	p.inflight, p.next = false, max(p.match, hint)+1
	r.replicate(id)
}

// onAck takes in how far another replica's log agrees with this one's, and what it knows to be committed of that. Only the answer to the newest
// message makes way for the next one: if every copy of an answer did, a network that doubles messages would have ever more of them under way.
func (r *replica) onAck(id, term, message, match, commit uint64) {
	p := r.progress[id]
	if r.gone || r.role != leading || r.term != term || p == nil {
		return
	}
	if message == p.message {
		p.inflight = false
	}
	if match > p.match {
		p.match = match
	}
	p.next, p.commit = max(p.next, p.match+1), max(p.commit, commit)
	r.advance()
	if p.match < r.last() {
		r.replicate(id)
	}
}

// advance commits what most voters have, of this leader's own term (raft, §5.4.2).
func (r *replica) advance() {
	if r.role != leading {
		return
	}
	var have []uint64
	for id := range r.members.Voters {
		switch p := r.progress[id]; {
		case id == r.id:
			have = append(have, r.synced)
		case p != nil:
			have = append(have, p.match)
		default:
			have = append(have, 0)
		}
	}
	slices.Sort(have)
	through := have[(len(have)-1)/2]
	if r.model.cfg.bug == bugCommitAlone {
		through = r.synced
	}
	if through > r.commit && r.termAt(through) == r.term {
		r.commit = through
	}
	if r.applied < r.commit {
		r.learn(r.commit)
		r.tick()
	}
}

// confirm does then once most voters have said that they still follow this leader: what is committed now is the newest there is
// (raft's ReadIndex). It never does if they do not.
func (r *replica) confirm(then func()) {
	term, said := r.term, map[uint64]bool{r.id: true}
	done := false
	check := func() {
		agreed := 0
		for id := range r.members.Voters {
			if said[id] {
				agreed++
			}
		}
		if !done && !r.gone && r.leads && r.term == term && (agreed > len(r.members.Voters)/2 || r.model.cfg.bug == bugStaleRead) {
			done = true
			then()
		}
	}
	for _, id := range r.others() {
		other := r.shard.replica(id)
		if other == nil {
			continue
		}
		r.model.send(r.node, other.node, "confirm", func() {
			if other.gone || other.term != term {
				return
			}
			r.model.send(other.node, r.node, "confirmed", func() {
				said[id] = true
				check()
			})
		})
	}
	check()
}

// lead starts a leader's work: it has applied everything that was committed before its term.
func (r *replica) lead() {
	m := r.model
	r.leads = true
	r.shard.settleLeader()
	r.reconfigure()
	if r.shard.number == 0 {
		r.meta = newMeta(m, r)
		return
	}
	r.turns = newLeader(m, r)
	r.turns.wake()
}

func isMember(m shardmap.Members, id uint64) bool { return m.Voters[id] != "" || m.NonVoters[id] != "" }

func sortedKeys(m map[uint64]string) []uint64 { return slices.Sorted(maps.Keys(m)) }
