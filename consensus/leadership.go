package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
)

// leaders follows who leads the shards of local replicas.
type leaders struct {
	// changed wakes whoever acts on leaderships.
	changed *signal
	mu      sync.Mutex
	shards  map[uint64]*leaderState
}

type leaderState struct {
	info raftio.LeaderInfo
	// seen is when a leader was last known, while none is.
	seen time.Time
	// changed is closed and replaced with every change.
	changed chan struct{}
}

func (l *leaders) state(shard uint64) *leaderState {
	s, ok := l.shards[shard]
	if !ok {
		s = &leaderState{changed: make(chan struct{})}
		l.shards[shard] = s
	}
	return s
}

// get returns the last report and a channel that closes with the next one.
func (l *leaders) get(shard uint64) (raftio.LeaderInfo, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state(shard)
	return s.info, s.changed
}

// term is that of the leader that is known, 0 without one.
func (l *leaders) term(shard uint64) uint64 {
	info, _ := l.get(shard)
	if info.LeaderID == raftio.NoLeader {
		return 0
	}
	return info.Term
}

// LeaderUpdated is dragonboat's report.
func (l *leaders) LeaderUpdated(info raftio.LeaderInfo) {
	l.mu.Lock()
	s := l.state(info.ShardID)
	if info.LeaderID == raftio.NoLeader && s.info.LeaderID != raftio.NoLeader {
		s.seen = time.Now()
	}
	s.info = info
	close(s.changed)
	s.changed = make(chan struct{})
	l.mu.Unlock()
	l.changed.broadcast()
}

// seen is when a shard last had a leader, in unix milliseconds; 0 is never.
func (l *leaders) seen(shard uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s := l.state(shard); {
	case s.info.LeaderID != raftio.NoLeader:
		return time.Now().UnixMilli()
	case s.seen.IsZero():
		return 0
	default:
		return s.seen.UnixMilli()
	}
}

// forget drops the report of a replica that stopped.
func (l *leaders) forget(shard uint64) {
	l.LeaderUpdated(raftio.LeaderInfo{ShardID: shard})
}

func leads(info raftio.LeaderInfo) bool {
	return info.LeaderID != raftio.NoLeader && info.LeaderID == info.ReplicaID
}

// mailbox passes leaderships on. It keeps the newest per shard, so that a slow
// reader holds nothing up.
type mailbox struct {
	mu      sync.Mutex
	pending map[uint64]Leadership
	order   []uint64
	wake    chan struct{}
}

func (m *mailbox) put(l Leadership) {
	m.mu.Lock()
	if _, waiting := m.pending[l.Shard]; !waiting {
		m.order = append(m.order, l.Shard)
	}
	m.pending[l.Shard] = l
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() (Leadership, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.order) == 0 {
		return Leadership{}, false
	}
	l := m.pending[m.order[0]]
	delete(m.pending, l.Shard)
	m.order = m.order[1:]
	return l, true
}

func (m *mailbox) run(ctx context.Context, out chan<- Leadership) {
	for {
		l, ok := m.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-m.wake:
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case out <- l:
		}
	}
}

// barrierPause is how long a new leader waits before it asks again for its first confirmed read.
const barrierPause = time.Millisecond

// followLeadership reports the replica's leaderships until ctx ends. A gained one is
// reported after a barrier: raft makes a leader before it has applied what its
// predecessor committed, and whoever decides from the local View must see that.
func (h *Host) followLeadership(ctx context.Context, r *replica) {
	var reported Leadership
	report := func(l Leadership) {
		if l.Leader != reported.Leader || (l.Leader && l.Term != reported.Term) {
			reported = l
			r.leading.Store(l.Leader)
			h.leadership.put(l)
		}
	}
	defer func() { report(Leadership{Shard: r.shard, Term: reported.Term}) }()
	for {
		info, changed := h.leaders.get(r.shard)
		var retry <-chan time.Time
		if !leads(info) || info.ReplicaID != r.id {
			report(Leadership{Shard: r.shard, Term: info.Term})
		} else if reported.Term != info.Term || !reported.Leader {
			if _, err := h.readIndex(ctx, r); err == nil {
				r.ready.Store(true)
				report(Leadership{Shard: r.shard, Leader: true, Term: info.Term})
			} else if ctx.Err() == nil {
				// A leader refuses reads until it has committed something of its own term; asking without a pause would only keep it busy.
				retry = time.After(barrierPause)
			}
		}
		select {
		case <-retry:
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
