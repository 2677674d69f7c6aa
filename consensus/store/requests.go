package store

import "encoding/binary"

// request is an applied transaction, remembered so that a retry finds its outcome.
type request struct {
	id        RequestID
	at        Revision
	revisions []Revision
}

// requests is a first-in first-out table of applied requests. forgotten is the
// highest revision of a request that was dropped: one with a stamp above it is
// either in the table or was never applied, because no request is applied below
// its stamp.
type requests struct {
	limit int
	queue []request
	// gone is how many have left the queue. A request's number is how many were added
	// before it; index finds it.
	gone      uint64
	index     requestIndex
	forgotten Revision
	// dropped counts those that left and are still in the queue's array.
	dropped int
}

func newRequests(limit int) requests { return requests{limit: limit} }

func (r *requests) find(id RequestID) (request, bool) {
	if id == (RequestID{}) {
		return request{}, false
	}
	for _, n := range r.index.candidates(id) {
		// The difference of 32-bit numbers is right, because the queue is shorter.
		if at := n - uint32(r.gone); r.queue[at].id == id {
			return r.queue[at], true
		}
	}
	return request{}, false
}

func (r *requests) add(id RequestID, res Result) {
	if id == (RequestID{}) {
		return
	}
	r.index.add(id, uint32(r.gone)+uint32(len(r.queue)))
	r.queue = append(r.queue, request{id: id, at: res.Revision, revisions: res.Revisions})
	if len(r.queue) <= r.limit {
		return
	}
	old := r.queue[0]
	r.index.remove(old.id, uint32(r.gone))
	r.queue = r.queue[1:]
	r.gone++
	r.forgotten = max(r.forgotten, old.at)
	if r.dropped++; r.dropped > len(r.queue)+1024 {
		r.queue = append(make([]request, 0, 2*len(r.queue)), r.queue...)
		r.dropped = 0
	}
}

// requestIndex finds requests by their IDs: a hash table with linear probing that
// holds a part of each ID's hash and the request's number, and not the ID. Every
// write asks it for an ID that it does not have, adds that and removes another; a
// map of 16-byte keys takes several cache misses for each of the three, this one
// takes one.
type requestIndex struct {
	// slots are a power of two, at most half of them used. A slot is 0 if it is free,
	// else the tag in the upper half and the number in the lower.
	slots []uint64
	used  int
}

// tag is never 0; its low bits are where the probing begins.
func (id RequestID) tag() uint32 {
	hash := (binary.LittleEndian.Uint64(id[:]) ^ binary.LittleEndian.Uint64(id[8:])) * 0x9e3779b97f4a7c15 // 2^64 ÷ the golden ratio
	return uint32(hash>>32) | 1<<31
}

func (x *requestIndex) home(slot uint64) int { return int(slot>>32) & (len(x.slots) - 1) }
func (x *requestIndex) next(at int) int      { return (at + 1) & (len(x.slots) - 1) }

// candidates are the places and numbers of the requests that may have the ID.
func (x *requestIndex) candidates(id RequestID) func(yield func(at int, number uint32) bool) {
	return func(yield func(int, uint32) bool) {
		if len(x.slots) == 0 {
			return
		}
		tag := id.tag()
		for at := x.home(uint64(tag) << 32); x.slots[at] != 0; at = x.next(at) {
			if slot := x.slots[at]; uint32(slot>>32) == tag && !yield(at, uint32(slot)) {
				return
			}
		}
	}
}

func (x *requestIndex) add(id RequestID, number uint32) {
	if 2*(x.used+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]uint64, max(64, 2*len(old)))
		for _, slot := range old {
			if slot != 0 {
				x.put(slot)
			}
		}
	}
	x.put(uint64(id.tag())<<32 | uint64(number))
	x.used++
}

func (x *requestIndex) put(slot uint64) {
	at := x.home(slot)
	for x.slots[at] != 0 {
		at = x.next(at)
	}
	x.slots[at] = slot
}

// remove takes the request with the ID and the number out. What was put behind it for
// want of its place moves up, so that probing never meets a gap.
func (x *requestIndex) remove(id RequestID, number uint32) {
	for free, n := range x.candidates(id) {
		if n != number {
			continue
		}
		x.used--
		for at := x.next(free); x.slots[at] != 0; at = x.next(at) {
			// It may move up unless its probing begins between the two.
			mask := len(x.slots) - 1
			if home := x.home(x.slots[at]); (at-home)&mask >= (at-free)&mask {
				x.slots[free] = x.slots[at]
				free = at
			}
		}
		x.slots[free] = 0
		return
	}
}
