package store

import (
	"bytes"
	"time"
)

// Limits bounds what a shard remembers of its past. Replicas with different Bytes or
// Age keep the same keys, but do not reach back equally far. Requests is part of the
// state machine and must be the same on all of them.
type Limits struct {
	// Bytes of superseded versions. Default 32 MiB.
	Bytes int64
	// Age in revision time. Default 10 minutes.
	Age time.Duration
	// Requests is how many applied request IDs are remembered. Default 32,768.
	Requests int
}

// WithDefaults fills zero fields.
func (l Limits) WithDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 32 << 20
	}
	if l.Age == 0 {
		l.Age = 10 * time.Minute
	}
	if l.Requests == 0 {
		l.Requests = 32_768
	}
	return l
}

// Store is the state machine of one shard. One goroutine applies; any number read
// the Views it hands out.
type Store struct {
	shard  uint64
	limits Limits
	last   Revision
	// keys holds the live versions by key, expiry those that expire by expiryKey.
	keys, expiry tree
	// size is that of the live keys and values, in bytes.
	size    int64
	history history
	seen    requests
	view    *state
}

// New returns the empty state of a shard.
func New(shard uint64, limits Limits) *Store {
	limits = limits.WithDefaults()
	return &Store{
		shard:  shard,
		limits: limits,
		keys:   newTree(),
		expiry: newTree(),
		seen:   newRequests(limits.Requests),
	}
}

// Apply applies the transaction and returns its outcome and, if it changed
// anything, its events in revision order. Applying a request again returns the
// first outcome and no events.
func (s *Store) Apply(tx Transaction) (Result, []Event) {
	s.view = nil
	stamp := tx.Stamp
	if stamp < 0 || stamp > maxStamp {
		stamp = 0
	}
	if done, ok := s.seen.find(tx.ID); ok {
		s.advance(stamp)
		return Result{OK: true, Revision: done.at, Revisions: done.revisions}, nil
	}
	if tx.ID != (RequestID{}) && stamp != 0 && stamp <= s.seen.forgotten {
		s.advance(stamp)
		return Result{Forgotten: true, Revision: s.last}, nil
	}
	if failed := s.failed(tx.Conditions); failed != nil {
		s.advance(stamp)
		return Result{Revision: s.last, Failed: failed}, nil
	}
	res := Result{OK: true}
	var events []Event
	// Within a transaction changes are one tick apart, to the one before it at least two: so the revisions alone tell which changes
	// belong together, see View.Whole.
	first := max(stamp, s.last+2*Tick)
	if len(tx.Ops) > 0 {
		res.Revisions = make([]Revision, len(tx.Ops))
		events = make([]Event, 0, len(tx.Ops))
	}
	for i, op := range tx.Ops {
		var ev Event
		var changed bool
		if res.Revisions[i], ev, changed = s.applyOp(op, first); changed {
			events = append(events, ev)
		}
	}
	s.advance(stamp)
	res.Revision = s.last
	if len(tx.Ops) > 0 {
		s.seen.add(tx.ID, res)
	}
	s.history.trim(s.limits, s.last)
	return res, events
}

// advance lifts the shard's revision to at least the stamp.
func (s *Store) advance(stamp Revision) {
	s.last = max(s.last, stamp.onShard(s.shard))
}

func (s *Store) failed(conditions []Condition) []KV {
	var failed []KV
	for _, c := range conditions {
		kv, ok := s.keys.Get(c.Key)
		switch {
		case !ok && c.Revision != 0:
			failed = append(failed, KV{Key: c.Key})
		case ok && kv.Mod != c.Revision:
			failed = append(failed, *kv)
		}
	}
	return failed
}

// applyOp gives a change the next revision, and least at the lowest. It returns the
// key's Mod after the op, and the event if it changed anything.
func (s *Store) applyOp(op Op, least Revision) (Revision, Event, bool) {
	prev, had := s.keys.Get(op.Key)
	if op.Delete && !had {
		return 0, Event{}, false
	}
	if op.Value == nil {
		op.Value = []byte{} // nil is for deletions
	}
	if !op.Delete && had && prev.Expires == op.Expires && bytes.Equal(prev.Value, op.Value) {
		return prev.Mod, Event{}, false
	}
	rev := max(s.last+Tick, least).onShard(s.shard)
	s.last = rev
	if had && prev.Expires != 0 {
		s.expiry.Delete(expiryKey(prev))
	}
	rec := record{revision: rev, prev: prev}
	if had {
		s.size -= prev.size()
	}
	if op.Delete {
		s.keys.Delete(op.Key)
	} else {
		kv := &KV{Key: op.Key, Value: op.Value, Create: rev, Mod: rev, Expires: op.Expires}
		if had {
			// The key's bytes are shared between versions.
			kv.Key, kv.Create = prev.Key, prev.Create
		}
		s.keys.Set(kv.Key, kv)
		if kv.Expires != 0 {
			s.expiry.Set(expiryKey(kv), kv)
		}
		rec.cur = kv
		s.size += kv.size()
	}
	s.history.add(rec)
	return rev, rec.event(), true
}

// View returns an immutable snapshot of the state. It is cheap, and cheaper once
// for many transactions than after each: what one View shows is not copied again
// until the next.
func (s *Store) View() View {
	if s.view == nil {
		s.view = &state{
			shard: s.shard, last: s.last, floor: s.history.floor, size: s.size,
			keys: s.keys.freeze(), expiry: s.expiry.freeze(), history: s.history.records,
			requests: s.seen.queue, forgotten: s.seen.forgotten,
		}
	}
	return View{s.view}
}
