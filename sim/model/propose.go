package model

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/consensus/store"
	"shoal/placement"
)

// Times of a request to a shard: how long one attempt waits for its answer, and all of them together.
const (
	attemptTimeout = 700 * time.Millisecond
	retryPropose   = 100 * time.Millisecond
	proposeTimeout = 4 * time.Second
)

// request is a transaction on its way. It is sent again, under the same ID, until an answer comes, as Host.Propose does.
type request struct {
	model    *Model
	from     *node
	shard    *shard
	entry    entry
	deadline time.Duration
	tries    int
	arrived  []int // tries that came to a leader
	failed   []int // tries of which it is certain that they have done nothing, and will not
	sent     int
	over     bool
	then     func(store.Result, error)
}

// propose makes changes by the API's rules one transaction, in the name of a node, and says what became of it. Only if then is called with
// nil they were certainly made; with errUnknown they may have been, or may still be.
func (m *Model) propose(from *node, s *shard, changes []placement.Change, then func(error)) {
	tx, err := s.transaction(changes, from.wall())
	if err != nil {
		from.do(m.oneWay(), "refused", func() { then(err) })
		return
	}
	m.proposeTransaction(from, s, tx, changes, func(result store.Result, err error) {
		if err == nil && !result.OK {
			err = fmt.Errorf("%d conditions failed", len(result.Failed))
		}
		then(err)
	})
}

// proposeTransaction proposes what may be no object of the API. changes are what the checkers are told of it.
func (m *Model) proposeTransaction(from *node, s *shard, tx store.Transaction, changes []placement.Change, then func(store.Result, error)) {
	if err := from.stampable(); err != nil {
		from.do(m.oneWay(), "refused", func() { then(store.Result{}, err) })
		return
	}
	tx.Stamp = from.stamp()
	m.request(from, s, tx, changes, func(result store.Result, err error) {
		if result.Forgotten && err == nil {
			// It only was too old for the shard's memory of requests; a new stamp, above what the shard has answered, helps.
			m.proposeTransaction(from, s, tx, changes, then)
			return
		}
		then(result, err)
	})
}

// request sends a transaction that has its stamp to a shard.
func (m *Model) request(from *node, s *shard, tx store.Transaction, changes []placement.Change, then func(store.Result, error)) {
	binary.BigEndian.PutUint64(tx.ID[:8], m.chance.Uint64())
	binary.BigEndian.PutUint64(tx.ID[8:], m.chance.Uint64()|1)
	encoded := store.AppendTransaction(m.scratch[:0], tx)
	m.scratch = encoded
	decoded, err := store.DecodeTransaction(encoded)
	if err != nil {
		panic(err) // it was encoded a moment ago
	}
	if len(changes) > 0 {
		s.intents[tx.ID] = changes
	}
	r := &request{
		model: m, from: from, shard: s, entry: entry{tx: &decoded, size: len(encoded)}, deadline: m.now + proposeTimeout,
		then: then,
	}
	r.attempt()
}

// leaderFor is the leader that a peer would turn to: itself if it leads as far as it knows, else of those that it can talk to the one of the
// highest term.
func (s *shard) leaderFor(n *node) *replica {
	if own := s.on(n); own != nil && own.leads && n.active() {
		return own
	}
	if s.leads != nil && s.model.reaches(n, s.leads.node) {
		return s.leads
	}
	var best *replica
	for _, r := range s.replicas {
		if r.leads && !r.gone && s.model.reaches(n, r.node) && (best == nil || r.term > best.term) {
			best = r
		}
	}
	return best
}

func (r *request) attempt() {
	m := r.model
	if r.over {
		return
	}
	if m.now >= r.deadline {
		if r.sent > 0 {
			r.end(store.Result{}, errUnknown)
		} else {
			r.end(store.Result{}, errNoLeader)
		}
		return
	}
	r.tries++
	try := r.tries
	leader := r.shard.leaderFor(r.from)
	if leader == nil {
		r.from.do(retryPropose, "propose", func() { r.again(try) })
		return
	}
	r.sent++
	if leader.node == r.from {
		r.arrive(leader, try)
	} else {
		m.send(r.from, leader.node, "propose", func() { r.arrive(leader, try) })
	}
	r.from.do(attemptTimeout, "propose again", func() { r.again(try) })
}

// again makes the next attempt after one that has failed, or was not answered, once.
func (r *request) again(after int) {
	if r.tries == after {
		r.attempt()
	}
}

// arrive is the request at a leader.
func (r *request) arrive(leader *replica, try int) {
	if slices.Contains(r.arrived, try) {
		return // a connection brings it once
	}
	r.arrived = append(r.arrived, try)
	e := r.entry // each attempt is an entry of its own, and the state machine knows the ID
	leader.propose(&e, func(result store.Result, err error) {
		if leader.node == r.from {
			r.answer(try, result, err)
			return
		}
		r.model.send(leader.node, r.from, "outcome", func() { r.answer(try, result, err) })
	})
}

func (r *request) answer(try int, result store.Result, err error) {
	if r.over {
		return
	}
	if err != nil {
		if !slices.Contains(r.failed, try) {
			r.failed = append(r.failed, try)
			r.from.do(retryPropose, "propose", func() { r.again(try) })
		}
		return
	}
	r.from.observe(result.Revision)
	// Another try may still be under way, and find what this one has missed, or have done what is forgotten.
	if r.sent-len(r.failed) > 1 && (result.Forgotten || result.MayHold(*r.entry.tx)) {
		err = errUnknown
	}
	r.end(result, err)
}

// end tells the outcome, once. The timers of tries that nobody needs any more do not keep alive what it was about.
func (r *request) end(result store.Result, err error) {
	then := r.then
	r.over, r.then = true, nil
	then(result, err)
}

// keepDigests is how far back a shard remembers what its entries did. Replicas that lag further start from a snapshot anyway.
const keepDigests = 1 << 14

// took follows every entry that any replica applies. The first one moves what everybody sees; the others are compared with it.
func (m *Model) took(r *replica, e *entry, events []store.Event) {
	s, index := r.shard, r.applied
	if index <= s.index {
		if back := s.index - index; back < uint64(len(s.digests)) && s.digests[len(s.digests)-1-int(back)] != r.digest {
			m.violate(checkerReplicas, "shard %d: the copy on %s differs from others at entry %d", s.number, r.node.name, index)
		}
		return
	}
	s.index = index
	if s.digests = append(s.digests, r.digest); len(s.digests) > 2*keepDigests {
		s.digests = slices.Clone(s.digests[keepDigests:])
	}
	if e.tx == nil {
		if e.members != nil {
			m.checks.regrouped(s, r, e)
		}
		return
	}
	changes := s.intents[e.tx.ID]
	delete(s.intents, e.tx.ID)
	if len(events) > 0 {
		m.checkStamp(s, events[len(events)-1].Revision)
		m.committed(r, changes, events)
	}
}

// isObject tells a key of the API's objects from those of our own records.
func isObject(key string) bool { return strings.HasPrefix(key, "/registry/") }
