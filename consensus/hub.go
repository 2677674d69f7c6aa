package consensus

import (
	"context"
	"errors"
	"sync"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"shoal/consensus/store"
)

// watchBatch is how many events a watch delivers at once at most, watchBatchBytes
// the size of their values from which on it takes no further one: what a reader
// that has stopped reading keeps in memory.
const (
	watchBatch      = 512
	watchBatchBytes = 1 << 20
)

// errSourceClosed ends a subscription whose replica stopped.
var errSourceClosed = errors.New("replica stopped")

// hub holds the newest View of a replica and wakes subscriptions.
//
// Subscriptions have no queues: they read the shard's history at their own pace.
// So applying never waits for a reader, memory is bounded by the history, replayed
// and live events come from one place without gap or double, and a reader that
// falls behind the history is cut.
type hub struct {
	mu     sync.RWMutex
	view   store.View
	closed bool
	// byPrefix finds the subscriptions an event is for by walking its key's path.
	byPrefix *iradix.Tree[map[*subscription]struct{}]
	// progress are the subscriptions that get a mark after every change, marking
	// those that wait for the shard to reach a revision.
	progress, marking map[*subscription]struct{}
}

func newHub(v store.View) *hub {
	return &hub{
		view:     v,
		byPrefix: iradix.New[map[*subscription]struct{}](),
		progress: map[*subscription]struct{}{},
		marking:  map[*subscription]struct{}{},
	}
}

func (h *hub) current() store.View {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.view
}

// publish replaces the View and wakes whom its events concern.
func (h *hub) publish(v store.View, events []store.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view = v
	if h.byPrefix.Len() > 0 {
		root := h.byPrefix.Root()
		for i := range events {
			root.WalkPath([]byte(events[i].Key), func(_ []byte, subs map[*subscription]struct{}) bool {
				for s := range subs {
					s.mark(events[i].Revision)
				}
				return false
			})
		}
	}
	h.progressed()
}

// progressed wakes those who are to get a mark at the View.
func (h *hub) progressed() {
	for s := range h.progress {
		s.wakeUp()
	}
	for s := range h.marking {
		if s.asked(h.view.Revision()) {
			delete(h.marking, s)
			s.wakeUp()
		}
	}
}

// reset replaces the View by one that came from a snapshot: every subscription has
// to look for what it missed.
func (h *hub) reset(v store.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.view.Revision()
	h.view = v
	h.each(func(s *subscription) { s.mark(seen + 1) })
	h.progressed()
}

// close ends the subscriptions after what they have not read yet.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.each((*subscription).wakeUp)
}

func (h *hub) each(fn func(*subscription)) {
	h.byPrefix.Root().Walk(func(_ []byte, subs map[*subscription]struct{}) bool {
		for s := range subs {
			fn(s)
		}
		return false
	})
}

// subscription reads one watch's events from a hub. One goroutine calls next.
type subscription struct {
	hub      *hub
	prefix   string
	progress bool
	wake     chan struct{}
	// delivered is the revision up to which the reader has everything, marked the
	// newest progress mark.
	delivered, marked store.Revision
	// unread is the lowest revision that may hold an unread event, 0 for none. A
	// subscription with none misses nothing when the history is trimmed.
	unread store.Revision
	// wanted and wantedLast are the lowest and the highest revision that a mark was
	// asked for at and not given yet, 0 for none.
	wanted, wantedLast store.Revision
	stopped            bool
	// due says that the reader is to be told how far it is, whether or not it has asked.
	due bool
	// detached says that the replica is cut off: the reader has to go elsewhere.
	detached bool
	mu       sync.Mutex
}

// detach ends the subscriptions that there are, after what they have not read yet; new
// ones may be made.
func (h *hub) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.each(func(s *subscription) {
		s.detached = true
		s.wakeUp()
	})
}

// subscribe starts a subscription behind the revision, 0 for the newest. Error:
// ErrCompacted.
func (h *hub) subscribe(opts WatchOptions) (*subscription, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errSourceClosed
	}
	s := &subscription{hub: h, prefix: opts.Prefix, progress: opts.Progress, wake: make(chan struct{}, 1)}
	s.delivered = opts.After
	if opts.After == 0 {
		s.delivered = h.view.Revision()
	}
	if s.delivered < h.view.Floor() {
		return nil, ErrCompacted
	}
	subs, _ := h.byPrefix.Get([]byte(s.prefix))
	if subs == nil {
		subs = map[*subscription]struct{}{}
		h.byPrefix, _, _ = h.byPrefix.Insert([]byte(s.prefix), subs)
	}
	subs[s] = struct{}{}
	if s.progress {
		h.progress[s] = struct{}{}
	}
	s.mark(s.delivered + 1)
	return s, nil
}

func (s *subscription) stop() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	s.stopped = true
	delete(h.progress, s)
	delete(h.marking, s)
	if subs, ok := h.byPrefix.Get([]byte(s.prefix)); ok {
		if delete(subs, s); len(subs) == 0 {
			h.byPrefix, _, _ = h.byPrefix.Delete([]byte(s.prefix))
		}
	}
}

func (s *subscription) position() store.Revision { return s.delivered }

func (s *subscription) mark(rev store.Revision) {
	s.mu.Lock()
	if s.unread == 0 || rev < s.unread {
		s.unread = rev
	}
	s.mu.Unlock()
	s.wakeUp()
}

// want asks for a mark as soon as the shard is at or above the revision.
func (s *subscription) want(rev store.Revision) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	rev = max(rev, 1)
	s.mu.Lock()
	if s.wanted == 0 || rev < s.wanted {
		s.wanted = rev
	}
	s.wantedLast = max(s.wantedLast, rev)
	s.mu.Unlock()
	if s.asked(h.view.Revision()) {
		s.wakeUp()
	} else if !s.stopped {
		h.marking[s] = struct{}{}
	}
}

// asked says whether a mark at the revision would answer somebody.
func (s *subscription) asked(at store.Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted != 0 && at >= s.wanted
}

// answered notes that a mark at the revision is given. more is the revision of a
// later one that is still wanted, 0 for none.
func (s *subscription) answered(at store.Revision) (more store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted = 0; s.wantedLast > at {
		return s.wantedLast
	}
	s.wantedLast = 0
	return 0
}

// tell has the reader told how far it is.
func (s *subscription) tell() {
	s.mu.Lock()
	s.due = true
	s.mu.Unlock()
	s.wakeUp()
}

func (s *subscription) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next waits for events or, if asked for, a progress mark. Errors: ctx's,
// errSourceClosed after everything was read, ErrSlowWatcher.
func (s *subscription) next(ctx context.Context) ([]store.Event, error) {
	for {
		events, closed, err := s.read()
		if err != nil || len(events) > 0 {
			return events, err
		}
		if closed {
			return nil, errSourceClosed
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.wake:
		}
	}
}

// read takes what is there. View and unread are read under one lock: an event is
// then either in the View or will be marked.
func (s *subscription) read() (events []store.Event, closed bool, err error) {
	s.hub.mu.RLock()
	view, closed := s.hub.view, s.hub.closed || s.detached
	s.mu.Lock()
	unread, due := s.unread, s.due
	s.unread, s.due = 0, false
	s.mu.Unlock()
	s.hub.mu.RUnlock()

	complete := view.Revision()
	if unread != 0 {
		events, complete, err = view.Events(max(unread-1, s.delivered), s.prefix, watchBatch, watchBatchBytes)
		if err != nil {
			return nil, closed, ErrSlowWatcher
		}
		if complete < view.Revision() {
			s.mark(complete + 1)
			closed = false
		}
	}
	s.delivered = max(s.delivered, complete)
	// A watch from a revision ahead of the shard gets no mark before the shard is
	// there.
	at := view.Revision()
	if complete < at || s.delivered > at {
		return events, closed, nil
	}
	if s.progress || s.asked(at) {
		if more := s.answered(at); more != 0 {
			s.want(more)
		}
		if at > s.marked {
			s.marked, due = at, true
		}
	}
	if due {
		events = append(events, store.Event{Revision: at, Progress: true})
	}
	return events, closed, nil
}
