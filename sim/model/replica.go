package model

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// replica is one peer's copy of a shard: a log, and the state that its committed part makes. Together the replicas of a shard are one raft
// group, told at the level of entries: terms, votes, appends, acknowledgements, snapshots and changes of membership are there, heartbeats
// are not (see review).
type replica struct {
	model *Model
	shard *shard
	node  *node
	id    uint64
	gone  bool // its disk, or its place in the group

	// On disk.
	term, vote uint64
	base       uint64 // index and term of the last entry that only the state holds
	baseTerm   uint64
	log        []*entry // log[i] has the index base+1+i
	synced     uint64   // the last index that survives a loss of power
	members    shardmap.Members
	removed    map[uint64]bool // replicas that were taken out of the group
	applied    uint64
	digest     uint64 // of everything applied, in order
	state      *store.Store

	// In memory.
	role     role
	commit   uint64
	votes    map[uint64]bool
	progress map[uint64]*progress
	waiting  map[uint64]*waiter // by index: who wants to know what comes of an entry
	electing bool               // its clock for an election, or for stepping down, runs
	ticking  bool
	handed   bool   // leadership was handed over to it
	seen     uint64 // applied, when the convergence checker looked, and how often since
	looks    int
	changing bool    // the next step of a change of membership is planned
	leads    bool    // it has applied everything from before its term, and works as the leader
	turns    *leader // of a data shard
	meta     *meta   // of the meta shard
}

type role int

const (
	follower role = iota
	candidate
	leading
)

// entry is one entry of a log. Replicas share it.
type entry struct {
	term    uint64
	tx      *store.Transaction // as it is read from the log; nil of an entry that only opens a term
	size    int                // of the transaction on disk, in bytes
	members *shardmap.Members  // of a change of membership: the group from here on
	removed uint64             // of a change of membership: the replica that was taken out
}

// progress is what a leader knows of another replica.
type progress struct {
	match, next uint64
	commit      uint64 // that it is known to have been told
	sent        time.Duration
	message     uint64 // the newest that was sent, counted
	inflight    bool   // it was not answered yet
}

// waiter is a request whose entry is under way.
type waiter struct {
	term uint64
	done func(store.Result, error)
}

// storeLimits keep the past short: hundreds of shards would each keep 32 MiB of it. Nobody here reads further back.
var storeLimits = store.Limits{Bytes: 256 << 10, Requests: 4096}

// keepEntries is how many applied entries a log keeps for those that lag; who lags further gets a snapshot.
const keepEntries = 512

// keepBytes is how much of applied entries a log keeps.
const keepBytes = 1 << 20

func (m *Model) newReplica(s *shard, n *node, id uint64) *replica {
	r := &replica{
		model: m, shard: s, node: n, id: id, removed: map[uint64]bool{}, state: store.New(s.number, storeLimits), waiting: map[uint64]*waiter{},
	}
	s.replicas = append(s.replicas, r)
	n.replicas = append(n.replicas, r)
	return r
}

func (s *shard) replica(id uint64) *replica {
	for _, r := range s.replicas {
		if r.id == id && !r.gone {
			return r
		}
	}
	return nil
}

// on is a node's living replica of a shard, nil if it has none.
func (s *shard) on(n *node) *replica {
	for _, r := range n.replicas {
		if r.shard == s && !r.gone {
			return r
		}
	}
	return nil
}

// last is the index of the last entry.
func (r *replica) last() uint64 { return r.base + uint64(len(r.log)) }

// termAt is the term of an entry that the replica has.
func (r *replica) termAt(index uint64) uint64 {
	if index <= r.base {
		return r.baseTerm
	}
	return r.log[index-r.base-1].term
}

// newer tells whether the log reaches further than another's, as raft compares them.
func (r *replica) newer(term, index uint64) bool {
	return r.termAt(r.last()) > term || r.termAt(r.last()) == term && r.last() > index
}

func (r *replica) voter() bool { return r.members.Voters[r.id] != "" }

// add puts an entry at the end of the log.
func (r *replica) add(e *entry) uint64 {
	r.log = append(r.log, e)
	return r.last()
}

// sync makes the log durable, and then does what waits for that. A disk that is full takes nothing.
func (r *replica) sync(then func()) {
	last := r.last()
	r.node.do(r.node.syncDelay(), "sync", func() {
		if r.gone {
			return
		}
		r.synced = max(r.synced, min(last, r.last()))
		then()
	})
}

// crash is what a loss of power leaves: the log up to what was synced, and the state, which is what replaying the log would give.
func (r *replica) crash() {
	r.resign()
	r.role, r.votes, r.electing, r.ticking, r.changing = follower, nil, false, false, false
	r.log = r.log[:max(r.synced, r.applied)-r.base]
	r.commit = r.applied
}

// learn moves what is known to be committed, and applies what is durable of it.
func (r *replica) learn(commit uint64) {
	r.commit = max(r.commit, min(commit, r.last()))
	for r.applied < min(r.commit, r.synced) && !r.gone {
		r.apply(r.log[r.applied-r.base])
	}
	r.compact()
}

// apply applies the next entry.
func (r *replica) apply(e *entry) {
	r.applied++
	index := r.applied
	var result store.Result
	var events []store.Event
	switch {
	case e.tx != nil:
		result, events = r.state.Apply(*e.tx)
		r.chain(index, result, events)
		r.node.observe(result.Revision)
		if r.model.cfg.bug == bugReplicaDrifts && r.id == 2 && index%50 == 0 {
			r.digest++
		}
	case e.members != nil:
		r.joinGroup(e)
		r.chain(index, result, nil)
	default:
		r.chain(index, result, nil)
	}
	r.model.took(r, e, events)
	if w := r.waiting[index]; w != nil {
		delete(r.waiting, index)
		if w.term == e.term {
			w.done(result, nil)
		} else {
			w.done(result, errOvertaken)
		}
	}
	if e.members != nil && !isMember(r.members, r.id) {
		r.leave()
	}
	if r.role == leading && e.term == r.term && !r.leads {
		r.lead()
	}
}

// digestSeed is of this process: digests are compared with each other only, and enter no trace.
var digestSeed = maphash.MakeSeed()

// chain adds what an entry has done to the digest of those before it.
func (r *replica) chain(index uint64, result store.Result, events []store.Event) {
	b := fmt.Appendf(r.model.scratch[:0], "%d %d %t %d %d", r.digest, index, result.OK, result.Revision, len(result.Failed))
	b = store.AppendEvents(b, events)
	r.digest, r.model.scratch = maphash.Bytes(digestSeed, b), b
}

// compact drops old entries, which the state holds.
func (r *replica) compact() {
	cut := r.base
	if r.applied >= r.base+2*keepEntries {
		cut = r.applied - keepEntries
	}
	if r.applied%64 == 0 {
		cut = max(cut, r.oldestWithin(keepBytes))
	}
	if cut == r.base {
		return
	}
	r.baseTerm = r.termAt(cut)
	r.log = slices.Clone(r.log[cut-r.base:])
	r.base = cut
}

// oldestWithin is the index below the oldest applied entry that is within so many bytes of the last one.
func (r *replica) oldestWithin(limit int) uint64 {
	size, index := 0, r.applied
	for index > r.base && size <= limit {
		size += r.log[index-r.base-1].size
		index--
	}
	return index
}

// snapshot is a whole state, as it goes over the wire.
type snapshot struct {
	index, term, digest uint64
	data                []byte
	members             shardmap.Members
	removed             map[uint64]bool
}

func (r *replica) snapshot() snapshot {
	var data bytes.Buffer
	if err := r.state.View().WriteSnapshot(&data); err != nil {
		panic(err) // a bytes.Buffer takes everything
	}
	return snapshot{r.applied, r.termAt(r.applied), r.digest, data.Bytes(), cloneMembers(r.members), maps.Clone(r.removed)}
}

// restore replaces log and state.
func (r *replica) restore(s snapshot) {
	state, err := store.ReadSnapshot(bytes.NewReader(s.data), r.shard.number, storeLimits)
	if err != nil {
		r.model.violate(checkerReplicas, "a snapshot of shard %d cannot be read: %v", r.shard.number, err)
		return
	}
	r.state, r.members, r.removed, r.digest = state, cloneMembers(s.members), maps.Clone(s.removed), s.digest
	r.base, r.baseTerm, r.log = s.index, s.term, nil
	r.applied, r.commit, r.synced = s.index, s.index, s.index
	r.node.observe(state.View().Revision())
	r.model.note("shard %d: the copy on %s starts from a snapshot at %d", r.shard.number, r.node.name, s.index)
}

func cloneMembers(m shardmap.Members) shardmap.Members {
	return shardmap.Members{Voters: maps.Clone(m.Voters), NonVoters: maps.Clone(m.NonVoters)}
}
