package turn

import (
	"container/heap"
	"slices"
	"time"

	"shoal/placement"
)

// agenda is when each question wants to be asked; the zero time is now. What is taken from it, and what comes first, costs by how much is taken
// and not by how much there is, or has ever been, as a walk through a map would: a shard has tens of thousands of objects, all of them due when
// a leader takes over, and hundreds of changes a second.
type agenda struct {
	queue byTime
	index map[placement.Ref]int // in the queue
}

type appointment struct {
	ref placement.Ref
	at  time.Time
}

func newAgenda() *agenda {
	a := &agenda{index: map[placement.Ref]int{}}
	a.queue.moved = func(i int) { a.index[a.queue.all[i].ref] = i }
	return a
}

// add asks a question at a moment, or before if it wants to be asked before.
func (a *agenda) add(ref placement.Ref, at time.Time) {
	i, known := a.index[ref]
	switch {
	case !known:
		heap.Push(&a.queue, appointment{ref, at})
	case at.Before(a.queue.all[i].at):
		a.queue.all[i].at = at
		heap.Fix(&a.queue, i)
	}
}

// first is when the first question wants to be asked; false if there is none.
func (a *agenda) first() (time.Time, bool) {
	if len(a.queue.all) == 0 {
		return time.Time{}, false
	}
	return a.queue.all[0].at, true
}

// take removes the questions that are due at now and returns them, sorted, so that a turn does not depend on the order in which they came.
func (a *agenda) take(now time.Time) []placement.Ref {
	var refs []placement.Ref
	for at, ok := a.first(); ok && !at.After(now); at, ok = a.first() {
		ref := heap.Pop(&a.queue).(appointment).ref
		delete(a.index, ref)
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, placement.Ref.Compare)
	return refs
}

// byTime is a heap of appointments that tells where each stands.
type byTime struct {
	all   []appointment
	moved func(i int)
}

func (q *byTime) Len() int           { return len(q.all) }
func (q *byTime) Less(i, j int) bool { return q.all[i].at.Before(q.all[j].at) }

func (q *byTime) Swap(i, j int) {
	q.all[i], q.all[j] = q.all[j], q.all[i]
	q.moved(i)
	q.moved(j)
}

func (q *byTime) Push(x any) {
	q.all = append(q.all, x.(appointment))
	q.moved(len(q.all) - 1)
}

func (q *byTime) Pop() any {
	last := len(q.all) - 1
	top := q.all[last]
	q.all[last] = appointment{}
	q.all = q.all[:last]
	return top
}
