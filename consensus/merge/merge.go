// Package merge makes one stream, in the order of revisions, of the streams of several shards.
//
// It is pure: peer/api/storage pushes what real watches deliver, sim/model what simulated replicas have applied. The order rests on closed
// timestamps: a shard that has reached a revision assigns no lower one any more, and shards that keep an event waiting are asked to pass it
// (CloseTarget), as with CockroachDB's closed timestamps.
package merge

import (
	"container/heap"
	"slices"
	"sort"

	"shoal/consensus/bugs"
	"shoal/consensus/store"
)

// Merger merges the event streams of several shards into one in revision order. An
// event is released once no other shard can assign a lower revision any more. It is
// a pure data structure: the streams' goroutines push into it, and it says which
// shards keep it waiting.
type Merger struct {
	lanes []lane
	ready laneHeap
	// released is the revision of the last event that was released.
	released store.Revision
}

// lane is one shard's stream. Its queue is in revision order.
type lane struct {
	shard uint64
	queue []store.Event
	// size is that of the queue's values, in bytes.
	size int
	// closed is the revision up to which every event of the shard is in the queue or
	// was released, last the revision of the shard's own that says so.
	closed, last store.Revision
}

// New starts all streams at after, which every shard must have passed.
func New(shards []uint64, after store.Revision) *Merger {
	m := &Merger{}
	for _, shard := range shards {
		m.lanes = append(m.lanes, lane{shard: shard, closed: after, last: after})
	}
	m.ready.lanes = m.lanes
	return m
}

// Push appends a batch of the stream with the given index in New's shards.
func (m *Merger) Push(index int, batch []store.Event) {
	l := &m.lanes[index]
	waiting := len(l.queue) > 0
	for _, event := range batch {
		l.closed = max(l.closed, ClosedThrough(event.Revision))
		l.last = max(l.last, event.Revision)
		if !event.Progress {
			l.queue = append(l.queue, event)
			l.size += event.Size()
		}
	}
	if !waiting && len(l.queue) > 0 {
		heap.Push(&m.ready, index)
	}
}

// Crowded says whether the stream's waiting events are at least as many, or their
// values at least as large.
func (m *Merger) Crowded(index, events, size int) bool {
	l := &m.lanes[index]
	return len(l.queue) >= events || l.size >= size
}

// Release takes out events whose place in the order is certain, up to a number and
// about a size in bytes; at least one if there is one.
func (m *Merger) Release(events, size int) []store.Event {
	var released []store.Event
	taken := 0
	horizon := m.horizon()
	for m.ready.Len() > 0 && len(released) < events && taken < size {
		index := m.ready.indexes[0]
		l := &m.lanes[index]
		if l.queue[0].Revision > horizon {
			break
		}
		if crossed := m.released.Shard() != l.queue[0].Revision.Shard(); !crossed || !bugs.Often(bugs.SkipAtBoundary, 10) {
			released = append(released, l.queue[0])
		}
		m.released = l.queue[0].Revision
		taken += l.queue[0].Size()
		l.size -= l.queue[0].Size()
		l.queue[0] = store.Event{} // the array lives on
		l.queue = l.queue[1:]
		if len(l.queue) > 0 {
			heap.Fix(&m.ready, 0)
			continue
		}
		l.queue = nil
		heap.Pop(&m.ready)
		horizon = min(horizon, l.closed)
	}
	return released
}

// horizon is the revision up to which every event has arrived: streams with waiting
// events are known at least up to those, so only the empty ones bound it.
func (m *Merger) horizon() store.Revision {
	horizon := store.Revision(1<<63 - 1)
	for i := range m.lanes {
		if l := &m.lanes[i]; len(l.queue) == 0 {
			horizon = min(horizon, l.closed)
		}
	}
	return horizon
}

// Frontier is a revision up to which every event has been released. It is one that
// some shard has reached, not merely the end of its tick, because clients are told:
// a list after that shows what the shards have reached, and must not be older.
func (m *Merger) Frontier() store.Revision {
	frontier := m.lanes[0].closed
	for i := range m.lanes {
		l := &m.lanes[i]
		frontier = min(frontier, l.closed)
		if len(l.queue) > 0 {
			frontier = min(frontier, l.queue[0].Revision-1)
		}
	}
	reached := m.released
	for i := range m.lanes {
		if l := &m.lanes[i]; l.last <= frontier {
			reached = max(reached, l.last)
		}
	}
	return reached
}

// Highest is the highest revision known of any stream.
func (m *Merger) Highest() store.Revision {
	var highest store.Revision
	for i := range m.lanes {
		highest = max(highest, m.lanes[i].closed)
	}
	return highest
}

// NewestWaiting is the highest revision among the waiting events, 0 if none waits.
func (m *Merger) NewestWaiting() store.Revision {
	var newest store.Revision
	for i := range m.lanes {
		if queue := m.lanes[i].queue; len(queue) > 0 {
			newest = max(newest, queue[len(queue)-1].Revision)
		}
	}
	return newest
}

// Behind lists the indexes of the streams that are not known up to rev.
func (m *Merger) Behind(rev store.Revision) []int {
	var behind []int
	for i := range m.lanes {
		if m.lanes[i].closed < rev {
			behind = append(behind, i)
		}
	}
	return behind
}

// laneHeap orders the lanes with waiting events by their first one.
type laneHeap struct {
	lanes   []lane
	indexes []int
}

func (h *laneHeap) Len() int { return len(h.indexes) }
func (h *laneHeap) Less(i, j int) bool {
	return h.lanes[h.indexes[i]].queue[0].Revision < h.lanes[h.indexes[j]].queue[0].Revision
}
func (h *laneHeap) Swap(i, j int) { h.indexes[i], h.indexes[j] = h.indexes[j], h.indexes[i] }
func (h *laneHeap) Push(x any)    { h.indexes = append(h.indexes, x.(int)) }
func (h *laneHeap) Pop() any {
	last := h.indexes[len(h.indexes)-1]
	h.indexes = h.indexes[:len(h.indexes)-1]
	return last
}

// Keys merges lists that are sorted by key, with no key in two of them, into
// one.
func Keys(lists [][]store.KV) []store.KV {
	lists = slices.DeleteFunc(slices.Clone(lists), func(l []store.KV) bool { return len(l) == 0 })
	switch len(lists) {
	case 0:
		return nil
	case 1:
		return lists[0]
	}
	total := 0
	for _, list := range lists {
		total += len(list)
	}
	merged := make([]store.KV, 0, total)
	for len(lists) > 1 {
		// Neighbouring keys are mostly of one namespace, and so in one list: what comes before the other lists' first keys goes at once.
		first, second := leading(lists)
		run := sort.Search(len(lists[first]), func(i int) bool { return lists[first][i].Key > lists[second][0].Key })
		merged = append(merged, lists[first][:run]...)
		if lists[first] = lists[first][run:]; len(lists[first]) == 0 {
			lists = slices.Delete(lists, first, first+1)
		}
	}
	return append(merged, lists[0]...)
}

// leading are the two lists, of at least two, whose first keys are the lowest.
func leading(lists [][]store.KV) (first, second int) {
	first, second = 0, 1
	for i := 1; i < len(lists); i++ {
		switch key := lists[i][0].Key; {
		case key < lists[first][0].Key:
			first, second = i, first
		case i > 1 && key < lists[second][0].Key:
			second = i
		}
	}
	return first, second
}
