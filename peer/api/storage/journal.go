package storage

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"shoal/consensus"
	"shoal/consensus/store"
)

const (
	// A journal remembers more the more readers it has, because each that falls
	// behind it needs a merge of its own: for every reader journalEvents and
	// journalBytes, but no more than the maxima.
	journalEvents    = 256
	journalBytes     = 256 << 10
	journalMaxEvents = 16 << 10
	journalMaxBytes  = 16 << 20
	// readEvents and readBytes bound what one reader takes at once, and so what a
	// reader that has stopped reading keeps in memory.
	readEvents = 64
	readBytes  = 1 << 20
)

// journals gives the watches of one resource that are about the same keys one stream.
// A thousand watches then cost one subscription per shard, one merge, and one
// request to a shard that has to close.
type journals struct {
	s  *Storage
	mu sync.Mutex
	// by the prefix of their keys
	current map[string]*journal
}

// journal is the newest stretch of a stream. It hands each batch to the watches that
// have all before it and room for it: that a thousand of them wake up for every event,
// only to pass it on, would cost more than all the rest. The others read, each at its
// own pace, and one that falls behind the stretch goes on with a stream of its own,
// from the shards' histories, until it has caught up.
type journal struct {
	prefix  string
	cancel  context.CancelFunc
	opened  chan struct{} // closed once stream or failed is set
	stream  *stream
	failed  error
	readers atomic.Int64 // changed under journals.mu

	mu sync.Mutex
	// events are all above floor and at or below frontier, in order.
	events          []store.Event
	size            int
	floor, frontier store.Revision
	// ended says that there will be no more, err why.
	ended bool
	err   error
	// changed is closed and replaced whenever there is more to read.
	changed chan struct{}
	// followers are the watches that batches are handed to. The slice is replaced, never
	// changed.
	followers []*watcher
}

// alwaysReady is a channel that is closed.
var alwaysReady = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// join returns the journal of a prefix, which the caller has to leave. If there is
// none yet, one starts at after, which all of the shards must have passed. Errors:
// those of openStream.
func (js *journals) join(ctx context.Context, shards []uint64, prefix string, after store.Revision) (*journal, error) {
	for {
		js.mu.Lock()
		j := js.current[prefix]
		mine := j == nil
		if mine {
			j = &journal{prefix: prefix, opened: make(chan struct{}), changed: make(chan struct{}), floor: after, frontier: after}
			if js.current == nil {
				js.current = map[string]*journal{}
			}
			js.current[prefix] = j
		}
		j.readers.Add(1)
		js.mu.Unlock()
		if mine {
			js.open(j, shards, after)
		}
		select {
		case <-j.opened:
		case <-ctx.Done():
			js.leave(j)
			return nil, ctx.Err()
		}
		if j.failed == nil {
			return j, nil
		}
		js.leave(j)
		if mine || !errors.Is(j.failed, consensus.ErrCompacted) {
			return nil, j.failed
		}
		// it was too late for the revision of the one who opened it, not for mine
	}
}

// open starts the journal's stream, which lives until its last reader leaves.
func (js *journals) open(j *journal, shards []uint64, after store.Revision) {
	ctx, cancel := context.WithCancel(context.Background())
	j.cancel = cancel
	j.stream, j.failed = js.s.openStream(ctx, shards, j.prefix, after)
	if j.failed != nil {
		cancel()
		js.drop(j)
	} else {
		go func() {
			j.follow()
			js.drop(j)
		}()
	}
	close(j.opened)
}

// drop keeps the journal from getting further readers.
func (js *journals) drop(j *journal) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.current[j.prefix] == j {
		delete(js.current, j.prefix)
	}
}

func (js *journals) leave(j *journal) {
	js.mu.Lock()
	defer js.mu.Unlock()
	if j.readers.Add(-1) > 0 {
		return
	}
	if js.current[j.prefix] == j {
		delete(js.current, j.prefix)
	}
	if j.cancel != nil {
		j.cancel()
	}
}

// follow takes what the stream brings until it ends.
func (j *journal) follow() {
	for next := range j.stream.batches {
		for _, w := range j.append(next) {
			w.push(next)
		}
	}
	for _, w := range j.end() {
		w.wait()
	}
}

// end notes the end of the stream and returns whom to tell.
func (j *journal) end() []*watcher {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended, j.err = true, j.stream.err
	if j.err == nil {
		j.err = consensus.ErrClosed // nobody reads any more
	}
	close(j.changed)
	return j.followers
}

// register makes a watch a follower unless it is one, if it has everything that the
// journal has.
func (j *journal) register(w *watcher, at store.Revision) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || at < j.frontier {
		return false
	}
	if !slices.Contains(j.followers, w) {
		j.followers = append(slices.Clip(j.followers), w)
	}
	return true
}

func (j *journal) deregister(w *watcher) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i := slices.Index(j.followers, w); i >= 0 {
		j.followers = slices.Delete(slices.Clone(j.followers), i, i+1)
	}
}

// append adds a batch, wakes the readers, and returns whom to hand the batch to.
func (j *journal) append(next batch) []*watcher {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, next.events...)
	j.size += next.size
	j.frontier = max(j.frontier, next.frontier)
	drop := 0
	events := min(journalEvents*j.readers.Load(), journalMaxEvents)
	size := min(journalBytes*j.readers.Load(), journalMaxBytes)
	for n := int64(len(j.events)); n-int64(drop) > events || int64(j.size) > size && n-int64(drop) > 1; drop++ {
		j.size -= j.events[drop].Size()
		j.floor = j.events[drop].Revision
	}
	if drop > 0 {
		// in place: readers have copies
		kept := copy(j.events, j.events[drop:])
		clear(j.events[kept:])
		j.events = j.events[:kept]
	}
	close(j.changed)
	j.changed = make(chan struct{})
	return j.followers
}

// ready is closed as soon as there is something to read for one who has everything
// up to at.
func (j *journal) ready(at store.Revision) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended || j.frontier > at {
		return alwaysReady
	}
	return j.changed
}

// read takes events above at. behind says that some are forgotten; then there is no
// batch. Error: why the stream ended, once everything was read.
func (j *journal) read(at store.Revision) (next batch, behind bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at < j.floor {
		return batch{}, true, nil
	}
	first := sort.Search(len(j.events), func(i int) bool { return j.events[i].Revision > at })
	end := first
	for end < len(j.events) && end-first < readEvents && next.size < readBytes {
		next.size += j.events[end].Size()
		end++
	}
	next.events = append([]store.Event(nil), j.events[first:end]...)
	switch {
	case end < len(j.events):
		next.frontier = j.events[end-1].Revision
	case end > first || j.frontier > at:
		next.frontier = j.frontier
	case j.ended:
		return batch{}, false, j.err
	}
	return next, false, nil
}

// covers says whether one who has everything up to at can read on here.
func (j *journal) covers(at store.Revision) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return at >= j.floor
}

// ask asks the stream to bring its frontier up to date.
func (st *stream) ask() {
	select {
	case st.advance <- struct{}{}:
	default:
	}
}

// cursor is one watch's place in the events: in the journal, or in a stream of its
// own while that does not reach back far enough.
type cursor struct {
	s      *Storage
	ctx    context.Context
	shards []uint64
	prefix string
	// at is the revision up to which everything was taken.
	at      store.Revision
	journal *journal
	own     *stream
	end     context.CancelFunc // of own
}

// openCursor starts behind a revision that all of the shards must have passed. Its
// streams end with the context or with close. Error: ErrCompacted.
func (s *Storage) openCursor(ctx context.Context, shards []uint64, prefix string, after store.Revision) (*cursor, error) {
	c := &cursor{s: s, ctx: ctx, shards: shards, prefix: prefix, at: after}
	var err error
	if c.journal, err = s.journals.join(ctx, shards, prefix, after); err != nil {
		return nil, err
	}
	if !c.journal.covers(after) {
		if err := c.fork(); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// fork goes on with a stream of the cursor's own.
func (c *cursor) fork() error {
	ctx, cancel := context.WithCancel(c.ctx)
	own, err := c.s.openStream(ctx, c.shards, c.prefix, c.at)
	if err != nil {
		cancel()
		return err
	}
	c.own, c.end = own, cancel
	return nil
}

func (c *cursor) close() {
	if c.own != nil {
		c.end()
	}
	c.s.journals.leave(c.journal)
}

// sources are the channels to wait for: a batch of the cursor's own stream, or that
// take has something.
func (c *cursor) sources() (own <-chan batch, ready <-chan struct{}) {
	if c.own != nil {
		return c.own.batches, nil
	}
	return nil, c.journal.ready(c.at)
}

// took notes a batch of the cursor's own stream, and goes over to the journal when
// that has been reached.
func (c *cursor) took(next batch) {
	c.at = max(c.at, next.frontier)
	if c.journal.covers(c.at) {
		c.end()
		c.own, c.end = nil, nil
	}
}

// take reads from the journal. Errors: why it ended; ErrSlowWatcher for a cursor
// that has fallen behind the shards' histories.
func (c *cursor) take() (batch, error) {
	next, behind, err := c.journal.read(c.at)
	if err != nil {
		return batch{}, err
	}
	if !behind {
		c.at = max(c.at, next.frontier)
		return next, nil
	}
	if err := c.fork(); err != nil {
		if errors.Is(err, consensus.ErrCompacted) {
			err = consensus.ErrSlowWatcher
		}
		return batch{}, err
	}
	return batch{}, nil
}

// advance asks for a frontier that is up to date.
func (c *cursor) advance() {
	if c.own != nil {
		c.own.ask()
		return
	}
	c.journal.stream.ask()
}
