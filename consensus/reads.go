package consensus

import (
	"context"
	"sync"

	"shoal/consensus/store"
)

// reads lets linearizable reads of one replica share confirmations: one is under way
// at a time, and whoever comes meanwhile takes part in the next. A confirmation
// counts only for reads that had begun before it was asked for.
type reads struct {
	mu      sync.Mutex
	running bool
	next    *sharedRead
}

// sharedRead is a confirmation that several reads wait for.
type sharedRead struct {
	done chan struct{}
	view store.View
	err  error
}

// join returns the confirmation to wait for. The caller must carry it out if lead is
// true, and then what pass gives, until that is nothing.
func (r *reads) join() (s *sharedRead, lead bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &sharedRead{done: make(chan struct{})}
	}
	s = r.next
	if !r.running {
		r.running, r.next, lead = true, nil, true
	}
	return s, lead
}

// pass closes a confirmation and returns the next one that somebody waits for.
func (r *reads) pass(s *sharedRead) *sharedRead {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(s.done)
	s, r.next = r.next, nil
	r.running = s != nil
	return s
}

// readIndex confirms with a quorum what the newest committed entry is, waits until
// the replica has applied it and returns the View. It is one attempt, shared with
// the other reads that wait. A leader that was confirmed just before needs none.
func (h *Host) readIndex(ctx context.Context, r *replica) (store.View, error) {
	if view, ok := h.leased(r); ok {
		return view, nil
	}
	s, lead := r.reads.join()
	if lead && !h.spawn(func() { h.confirmReads(r, s) }) {
		for ended := s; ended != nil; ended = r.reads.pass(ended) {
			ended.err = ErrClosed
		}
	}
	select {
	case <-s.done:
		return s.view, s.err
	case <-ctx.Done():
		return store.View{}, ctx.Err()
	}
}

// confirmReads carries out a confirmation, and those that are waited for when it is done.
func (h *Host) confirmReads(r *replica, s *sharedRead) {
	for ; s != nil; s = r.reads.pass(s) {
		attempt, cancel := context.WithTimeout(h.ctx, readAttempt)
		asked := r.lease.asks(h.leases.elapsed())
		if s.view, s.err = h.confirm(attempt, r); s.err == nil {
			r.lease.confirmed(asked)
		}
		cancel()
	}
}
