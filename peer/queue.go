package peer

import (
	"slices"
	"sync"

	"shoal/consensus/store"
)

// queue carries changes from feeds to the one loop that owns what they are applied to. It never blocks a feed: a loop that is busy
// finds more at once, in the order of each feed.
type queue struct {
	wake chan struct{}

	lock    sync.Mutex
	changes []change
	taken   bool // handed out, and not applied as far as the queue was told
	upTo    map[source]store.Revision
}

// source is what one feed reads.
type source struct {
	shard  uint64
	prefix string
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), upTo: map[source]store.Revision{}}
}

// from is the apply function for the feed of a source.
func (q *queue) from(shard uint64, prefix string) func([]change, store.Revision) {
	return func(changes []change, upTo store.Revision) {
		for i := range changes {
			changes[i].Shard = shard
		}
		q.lock.Lock()
		q.changes = append(q.changes, changes...)
		before, known := q.upTo[source{shard, prefix}]
		q.upTo[source{shard, prefix}] = max(before, upTo)
		q.lock.Unlock()
		if len(changes) > 0 || !known || upTo > before {
			q.poke()
		}
	}
}

// poke wakes the loop without a change.
func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (q *queue) take() []change {
	q.lock.Lock()
	defer q.lock.Unlock()
	changes := q.changes
	q.changes, q.taken = nil, true
	return changes
}

// untaken is what the next take will bring, as far as it has arrived.
func (q *queue) untaken() []change {
	q.lock.Lock()
	defer q.lock.Unlock()
	return slices.Clone(q.changes)
}

// applied says that what was taken last has had its effect. Only a reader whose progress others wait for (see waiting) says so.
func (q *queue) applied() {
	q.lock.Lock()
	defer q.lock.Unlock()
	q.taken = false
}

// waiting tells whether changes have not been taken, or not been applied, yet.
func (q *queue) waiting() bool {
	q.lock.Lock()
	defer q.lock.Unlock()
	return len(q.changes) > 0 || q.taken
}

// has tells whether a source's feed has brought its list.
func (q *queue) has(shard uint64, prefix string) bool {
	q.lock.Lock()
	defer q.lock.Unlock()
	_, ok := q.upTo[source{shard, prefix}]
	return ok
}

// feeds is the number of feeds that have brought their list.
func (q *queue) feeds() int {
	q.lock.Lock()
	defer q.lock.Unlock()
	return len(q.upTo)
}

// reached is the revision up to which everything of a source has been put into the queue; zero before its list.
func (q *queue) reached(shard uint64, prefix string) store.Revision {
	q.lock.Lock()
	defer q.lock.Unlock()
	return q.upTo[source{shard, prefix}]
}
