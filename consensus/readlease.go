package consensus

import (
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"shoal/consensus/bugs"
	"shoal/consensus/store"
)

// A leader that has been confirmed by a majority may answer reads from its own copy for some time without asking again, if nobody else can
// be elected in that time. raft alone does not promise that: a replica that was restarted has forgotten whom it heard, ticks come late or in
// bunches, and leadership that is handed over asks nobody. So the promise is made here, where raft's messages leave and arrive:
//
//   - Who has heard a leader lets no call for an election through for hold, neither another's nor its own; and nor does a host for hold after
//     it has started, because it may have promised something before.
//   - A leader's lease begins when it asks for a confirmation and ends nine tenths of hold later by its own clock, so that clocks may run by
//     a tenth at a different rate. They are asked for durations alone; what they show does not matter.
//   - Before a message leaves that hands leadership over, or one of a later term, its lease ends; after handing over there is no other in
//     that term. So an election that needs no promise, that of a replica which was told to take over, finds the lease ended.
//   - A change of members does not end it: whoever commits one has heard the leader later than the lease began, and what they make up is a
//     majority that meets all those of the group with the change.
//   - What others may know to be committed, and may have told somebody, has left in one of the leader's messages. A read is answered from the
//     copy that has applied all of that.
//
// What it rests on beside raft: Clocks run at the same rate, within a tenth. The only voter that a group of two has left asks nobody for its
// election; it keeps its promise because raft's timeout is longer. And no time passes unseen: a virtual machine that its host stops without
// telling it does not see the time, and what it answers right after going on, for hold at most, may be old.

// electionTicks is raft's election timeout in ticks. hold is shorter, so that promises do not hold an election up that raft would allow.
const electionTicks = 10

// promiseHold is for how long a promise binds.
func promiseHold(tick time.Duration) time.Duration { return electionTicks * tick * 4 / 5 }

// leaseOf is how much of a promise a leader makes use of.
func leaseOf(hold time.Duration) time.Duration { return hold * 9 / 10 }

// readLeases are those of a host's replicas.
type readLeases struct {
	hold    time.Duration
	elapsed func() time.Duration
	begun   time.Duration
	// unused says that nobody here answers by a lease. The promises are kept all the same: others may count on them.
	unused bool

	mu       sync.RWMutex
	replicas map[replicaKey]*readLease
}

func newReadLeases(cfg Config) *readLeases {
	return &readLeases{
		hold: promiseHold(cfg.RTT), elapsed: cfg.Elapsed, begun: cfg.Elapsed(), unused: cfg.NoReadLeases,
		replicas: map[replicaKey]*readLease{},
	}
}

// start is for a replica that is about to run: what it promised holds, a lease it has none.
func (l *readLeases) start(key replicaKey) *readLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.replicas[key]
	r := &readLease{hold: l.hold, promised: l.begun + l.hold}
	if old != nil {
		old.mu.Lock()
		r.promised = max(r.promised, old.bound())
		old.mu.Unlock()
	}
	l.replicas[key] = r
	return r
}

// drop is for a replica that was deleted.
func (l *readLeases) drop(key replicaKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.replicas, key)
}

func (l *readLeases) of(key replicaKey) *readLease {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.replicas[key]
}

// sending is given what raft sends and returns what may leave.
func (l *readLeases) sending(b raftpb.MessageBatch) raftpb.MessageBatch {
	now := l.elapsed()
	b.Requests = keep(b.Requests, func(m *raftpb.Message) bool {
		r := l.of(replicaKey{m.ShardID, m.From})
		return r == nil || r.sends(m, now)
	})
	return b
}

// receiving is given what has arrived and returns what raft may see.
func (l *readLeases) receiving(b raftpb.MessageBatch) raftpb.MessageBatch {
	now := l.elapsed()
	b.Requests = keep(b.Requests, func(m *raftpb.Message) bool {
		r := l.of(replicaKey{m.ShardID, m.To})
		return r == nil || r.receives(m, now)
	})
	return b
}

// keep returns the messages that pass, in order. It asks for each once, and copies only if one does not.
func keep(all []raftpb.Message, pass func(*raftpb.Message) bool) []raftpb.Message {
	for i := range all {
		if pass(&all[i]) {
			continue
		}
		kept := slices.Clone(all[:i])
		for j := i + 1; j < len(all); j++ {
			if pass(&all[j]) {
				kept = append(kept, all[j])
			}
		}
		return kept
	}
	return all
}

// readLease is what one replica has promised and what it may do because others have. All times are of the host's own Elapsed.
type readLease struct {
	hold time.Duration

	mu sync.Mutex
	// promised is until when it takes part in no election.
	promised time.Duration
	// term is the newest that the replica's own messages or a leader's had; leading says that it has spoken as that term's leader, and
	// handedOver that it has told another to take over since. heard says that it has heard a leader since it was started.
	term                       uint64
	leading, handedOver, heard bool
	// told is the highest committed index that it has told others as the leader, shown the highest that its copy had applied when it was
	// confirmed: what the machine counts leaves out entries that are raft's own.
	told, shown uint64
	// until is when the lease ends, 0 without one.
	until time.Duration
}

// leaderMessages are those that only a leader sends.
var leaderMessages = map[raftpb.MessageType]bool{
	raftpb.Replicate: true, raftpb.Heartbeat: true, raftpb.InstallSnapshot: true, raftpb.TimeoutNow: true, raftpb.ReadIndexResp: true,
}

// sends tells whether a message of the replica's raft may leave.
func (r *readLease) sends(m *raftpb.Message, now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch m.Type {
	case raftpb.RequestPreVote:
		return !r.abstains(m, now) // its term is one that may never be
	case raftpb.RequestPreVoteResp:
		return true // and so is this
	case raftpb.RequestVote:
		if r.abstains(m, now) {
			return false
		}
	}
	r.reach(m.Term)
	if !leaderMessages[m.Type] || m.Term != r.term {
		return true
	}
	r.leading = true
	r.told = max(r.told, m.Commit)
	if m.Type == raftpb.TimeoutNow {
		r.handedOver, r.until = true, 0
	}
	return true
}

// receives tells whether the replica's raft may see a message. What raft answers leaves through sends, so that only another leader's word
// has to be looked at here.
func (r *readLease) receives(m *raftpb.Message, now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case m.Type == raftpb.RequestVote || m.Type == raftpb.RequestPreVote:
		return !r.abstains(m, now)
	case leaderMessages[m.Type] && m.Term >= r.term:
		r.reach(m.Term)
		r.promised, r.heard = now+r.hold, true
	}
	return true
}

// abstains tells whether a call for an election must not pass. One that its leader has asked for, which raft marks by the hint, may.
func (r *readLease) abstains(m *raftpb.Message, now time.Duration) bool {
	return m.Hint != m.From && now < r.bound()
}

// bound is until when the replica takes part in no election: a leader counts on itself as well.
func (r *readLease) bound() time.Duration { return max(r.promised, r.until) }

func (r *readLease) reach(term uint64) {
	if term > r.term {
		r.term, r.leading, r.handedOver, r.until = term, false, false, 0
	}
}

// confirmation is the moment before a majority is asked; it may begin a lease if the replica leads.
type confirmation struct {
	leads bool
	term  uint64
	told  uint64
	at    time.Duration
}

// asks begins a confirmation.
func (r *readLease) asks(now time.Duration) confirmation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return confirmation{leads: r.leads(), term: r.term, told: r.told, at: now}
}

// leads tells whether whatever confirms the replica's reads confirms it as the leader. The only voter of its group does not speak to
// anybody, but a replica that follows nobody has no reads confirmed.
func (r *readLease) leads() bool { return r.leading || !r.heard }

// confirmed begins a lease, if the replica led its group from the question to the answer.
func (r *readLease) confirmed(c confirmation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.leads || !r.leads() || r.handedOver || c.term != r.term {
		return
	}
	r.shown = max(r.shown, c.told)
	r.until = max(r.until, c.at+leaseOf(r.hold))
}

// needs is the index that a copy must have applied to be read from, if there is a lease at all. shown is what it has been seen to have.
func (r *readLease) needs() (index, shown uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told, r.shown, r.until != 0
}

// holds tells whether the lease lasts.
func (r *readLease) holds(now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.until != 0 && (now < r.until || bugs.On(bugs.EndlessLease))
}

// leased is the replica's View, if it may be read without asking anybody. The lease is looked at last: what was committed anywhere before
// that was committed by this leader.
func (h *Host) leased(r *replica) (store.View, bool) {
	if h.leases.unused {
		return store.View{}, false
	}
	index, shown, ok := r.lease.needs()
	if !ok || !r.ready.Load() {
		return store.View{}, false
	}
	m := r.machine.Load()
	if m.dead.Load() || index > max(shown, m.applied.Load()) {
		return store.View{}, false
	}
	view := m.hub.current()
	return view, r.lease.holds(h.leases.elapsed())
}
