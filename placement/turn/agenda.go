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
	heap  []appointment
	index map[placement.Ref]int // in the heap
}

type appointment struct {
	ref placement.Ref
	at  time.Time
}

func newAgenda() *agenda { return &agenda{index: map[placement.Ref]int{}} }

// add asks a question at a moment, or before if it wants to be asked before.
func (a *agenda) add(ref placement.Ref, at time.Time) {
	i, known := a.index[ref]
	switch {
	case !known:
		heap.Push(a, appointment{ref, at})
	case at.Before(a.heap[i].at):
		a.heap[i].at = at
		heap.Fix(a, i)
	}
}

// first is when the first question wants to be asked; false if there is none.
func (a *agenda) first() (time.Time, bool) {
	if len(a.heap) == 0 {
		return time.Time{}, false
	}
	return a.heap[0].at, true
}

// take removes the questions that are due at now and returns them, sorted, so that a turn does not depend on the order in which they came.
func (a *agenda) take(now time.Time) []placement.Ref {
	var refs []placement.Ref
	for at, ok := a.first(); ok && !at.After(now); at, ok = a.first() {
		refs = append(refs, heap.Pop(a).(appointment).ref)
	}
	slices.SortFunc(refs, placement.Ref.Compare)
	return refs
}

// Len, Less, Swap, Push and Pop are heap.Interface.
func (a *agenda) Len() int           { return len(a.heap) }
func (a *agenda) Less(i, j int) bool { return a.heap[i].at.Before(a.heap[j].at) }

func (a *agenda) Swap(i, j int) {
	a.heap[i], a.heap[j] = a.heap[j], a.heap[i]
	a.index[a.heap[i].ref], a.index[a.heap[j].ref] = i, j
}

func (a *agenda) Push(x any) {
	next := x.(appointment)
	a.index[next.ref] = len(a.heap)
	a.heap = append(a.heap, next)
}

func (a *agenda) Pop() any {
	last := len(a.heap) - 1
	top := a.heap[last]
	a.heap[last] = appointment{}
	a.heap = a.heap[:last]
	delete(a.index, top.ref)
	return top
}
