package store

import (
	"encoding/binary"
	"strings"
)

type state struct {
	shard        uint64
	last, floor  Revision
	size         int64
	keys, expiry tree
	history      []record
	requests     []request
	forgotten    Revision
}

// View is an immutable snapshot of a Store. It is a small value; the zero View
// holds nothing and must not be read.
type View struct{ s *state }

// Valid says that the View shows a Store.
func (v View) Valid() bool { return v.s != nil }

// Shard is the shard's number.
func (v View) Shard() uint64 { return v.s.shard }

// Revision is the shard's last revision: every later change has a higher one, so
// it is also the closed timestamp.
func (v View) Revision() Revision { return v.s.last }

// Floor is the revision that the history reaches back to: states at or above it
// can be read, and watches resumed.
func (v View) Floor() Revision { return v.s.floor }

// Oldest is the revision of the oldest change in the history, 0 if it is empty.
func (v View) Oldest() Revision {
	if len(v.s.history) == 0 {
		return 0
	}
	return v.s.history[0].revision
}

// Size is that of the newest keys and values, in bytes.
func (v View) Size() int64 { return v.s.size }

// Len is the number of keys.
func (v View) Len() int { return v.s.keys.Len() }

// Get returns the current version of a key.
func (v View) Get(key string) (KV, bool) {
	if kv, ok := v.s.keys.Get(key); ok {
		return *kv, true
	}
	return KV{}, false
}

// Ascend calls fn with the current version of every key with the prefix, in order,
// until fn returns false.
func (v View) Ascend(prefix string, fn func(KV) bool) {
	v.Walk(Range{Prefix: prefix}, func(kv *KV) bool { return fn(*kv) })
}

// Range selects keys with the prefix, at or above Start, below End ("" is none).
type Range struct {
	Prefix, Start, End string
	Reverse            bool
}

// At returns the state as it was at the revision, for keys in the range; other keys
// may be missing or newer. Zero is the newest. Errors: ErrCompacted, ErrFuture.
func (v View) At(rev Revision, r Range) (View, error) {
	if rev == 0 || rev == v.s.last {
		return v, nil
	}
	if rev > v.s.last {
		return View{}, ErrFuture
	}
	if rev < v.s.floor {
		return View{}, ErrCompacted
	}
	// Undo the later changes from the newest to the oldest.
	keys := v.s.keys.fork()
	for undo := after(v.s.history, rev); len(undo) > 0; undo = undo[:len(undo)-1] {
		rec := undo[len(undo)-1]
		key := rec.key()
		if !r.contains(key) {
			continue
		}
		if rec.prev == nil {
			keys.Delete(key)
		} else {
			keys.Set(key, rec.prev)
		}
	}
	old := *v.s
	old.keys, old.last = keys, rev
	return View{&old}, nil
}

// Whole is the lowest revision at or above rev whose state shows every transaction
// in full or not at all: rev itself, unless it lies among the changes of one. Of a
// revision that the history does not reach back to it says rev.
func (v View) Whole(rev Revision) Revision {
	later := after(v.s.history, rev)
	i := len(v.s.history) - len(later)
	if i == 0 {
		return rev
	}
	last := v.s.history[i-1].revision
	for _, rec := range later {
		if rec.revision != last+Tick {
			break
		}
		last = rec.revision
	}
	return max(rev, last)
}

func (r Range) contains(key string) bool {
	return strings.HasPrefix(key, r.Prefix) && key >= r.Start && (r.End == "" || key < r.End)
}

// bounds are the lowest key of the range and the lowest one behind it, "" for none.
func (r Range) bounds() (from, to string) {
	to = prefixEnd(r.Prefix)
	if r.End != "" && (to == "" || r.End < to) {
		to = r.End
	}
	return max(r.Start, r.Prefix), to
}

// Walk calls fn with every key in the range, in order or from the highest key
// down, until fn returns false. The KV is shared and must not be changed.
func (v View) Walk(r Range, fn func(*KV) bool) {
	from, to := r.bounds()
	if !r.Reverse {
		v.s.keys.Ascend(from, func(key string, kv *KV) bool {
			return (to == "" || key < to) && fn(kv)
		})
		return
	}
	down := func(key string, kv *KV) bool {
		return to != "" && key == to || key >= from && fn(kv)
	}
	if to == "" {
		v.s.keys.Reverse(down)
	} else {
		v.s.keys.Descend(to, down)
	}
}

// Count is the number of keys in the range. It costs no walk.
func (v View) Count(r Range) int {
	from, to := r.bounds()
	upper := v.s.keys.Len()
	if to != "" {
		upper = v.s.keys.rank(to)
	}
	return max(upper-v.s.keys.rank(from), 0)
}

// prefixEnd is the lowest string above every string with the prefix, "" if there
// is none.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}

// Events returns the changes above the revision of keys with the prefix, oldest
// first, and the revision up to which they are complete. They are at most limit, and
// no more once their values have the given size in bytes.
// Error: ErrCompacted if the history does not reach back to the revision.
func (v View) Events(afterRev Revision, prefix string, limit, size int) ([]Event, Revision, error) {
	if afterRev < v.s.floor {
		return nil, 0, ErrCompacted
	}
	var events []Event
	held := 0
	for _, rec := range after(v.s.history, afterRev) {
		if !strings.HasPrefix(rec.key(), prefix) {
			continue
		}
		if n := len(events); n > 0 && (n >= limit || held >= size) {
			return events, events[n-1].Revision, nil
		}
		ev := rec.event()
		held += ev.Size()
		events = append(events, ev)
	}
	return events, max(v.s.last, afterRev), nil
}

// Due returns keys whose Expires is at or before now (unix milliseconds), soonest
// first, at most limit of them.
func (v View) Due(now int64, limit int) []KV {
	var due []KV
	v.s.expiry.Scan(func(_ string, kv *KV) bool {
		if kv.Expires > now || len(due) == limit {
			return false
		}
		due = append(due, *kv)
		return true
	})
	return due
}

// expiryKey orders keys by their expiry. Negative moments count as long past.
func expiryKey(kv *KV) string {
	b := make([]byte, 8, 8+len(kv.Key))
	binary.BigEndian.PutUint64(b, uint64(max(kv.Expires, 0)))
	return string(append(b, kv.Key...))
}
