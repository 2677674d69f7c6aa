package store

import "sort"

// recordOverhead is what a record costs beside its superseded value, in bytes.
const recordOverhead = 192

// record is one change: cur is nil for a deletion, prev for a creation.
type record struct {
	revision  Revision
	cur, prev *KV
}

func (r record) key() string {
	if r.cur != nil {
		return r.cur.Key
	}
	return r.prev.Key
}

// size is what the record alone keeps in memory: a superseded version is held by
// exactly one record, a current one by the tree.
func (r record) size() int64 {
	if r.prev == nil {
		return recordOverhead
	}
	return recordOverhead + int64(len(r.prev.Value)) + int64(len(r.prev.Key))
}

func (r record) event() Event {
	ev := Event{Revision: r.revision, Key: r.key()}
	if r.prev != nil {
		ev.Prev, ev.PrevMod, ev.Create = r.prev.Value, r.prev.Mod, r.prev.Create
	}
	if r.cur == nil {
		ev.Delete = true
		return ev
	}
	ev.Value, ev.Create = r.cur.Value, r.cur.Create
	return ev
}

// history holds the changes above floor, oldest first. Views share the slice's
// array: records are appended behind what they see and never overwritten.
type history struct {
	records []record
	bytes   int64
	floor   Revision
	// dropped counts the records that were cut off since the array was made and
	// that it still keeps alive, droppedBytes what they keep.
	dropped      int
	droppedBytes int64
}

func (h *history) add(r record) {
	h.records = append(h.records, r)
	h.bytes += r.size()
}

// trim drops the oldest records until the limits hold.
func (h *history) trim(l Limits, last Revision) {
	oldest := last.millis() - l.Age.Milliseconds()
	n := 0
	for n < len(h.records) && (h.bytes > l.Bytes || h.records[n].revision.millis() < oldest) {
		size := h.records[n].size()
		h.bytes -= size
		h.droppedBytes += size
		h.floor = h.records[n].revision
		n++
	}
	if n == 0 {
		return
	}
	h.records = h.records[n:]
	// The array is older Views' too and cannot be cleared: a new one lets the dropped
	// versions go. A record is small beside its version, so that is done often.
	if h.dropped += n; h.dropped > len(h.records)+1024 || h.droppedBytes > l.Bytes/8 {
		h.records = append(make([]record, 0, len(h.records)+len(h.records)/4+16), h.records...)
		h.dropped, h.droppedBytes = 0, 0
	}
}

// after is the part of the records above the revision.
func after(records []record, rev Revision) []record {
	i := sort.Search(len(records), func(i int) bool { return records[i].revision > rev })
	return records[i:]
}
