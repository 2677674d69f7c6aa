package consensus

import (
	"context"
	"sync"

	"shoal/consensus/store"
)

// closers joins concurrent Close calls of a shard: one log entry is under way at a
// time, and all calls that come meanwhile share the next one. It must be the next,
// because the one under way may have been ordered before a write that the caller
// has already seen.
type closers struct {
	// spawn runs a loop that works until nobody waits; false says that the host has ended.
	spawn  func(func()) bool
	mu     sync.Mutex
	shards map[uint64]*closer
}

type closer struct {
	running bool
	next    *closing
}

type closing struct {
	upTo store.Revision
	done chan struct{}
	at   store.Revision
	err  error
}

type closeFunc func(ctx context.Context, shard uint64, upTo store.Revision) (store.Revision, error)

func (c *closers) close(ctx context.Context, shard uint64, upTo store.Revision, do closeFunc) (store.Revision, error) {
	c.mu.Lock()
	if c.shards == nil {
		c.shards = map[uint64]*closer{}
	}
	s := c.shards[shard]
	if s == nil {
		s = &closer{}
		c.shards[shard] = s
	}
	if s.next == nil {
		s.next = &closing{done: make(chan struct{})}
	}
	mine := s.next
	mine.upTo = max(mine.upTo, upTo)
	if !s.running && !c.spawn(func() { c.run(shard, s, do) }) {
		c.mu.Unlock()
		return 0, ErrClosed
	}
	s.running = true
	c.mu.Unlock()
	select {
	case <-mine.done:
		return mine.at, mine.err
	case <-ctx.Done():
		return 0, shardError(shard, ErrNoQuorum, ctx.Err())
	}
}

// run works until nobody waits. Its patience is its own: one caller's end must not
// fail the others.
func (c *closers) run(shard uint64, s *closer, do closeFunc) {
	for {
		c.mu.Lock()
		batch := s.next
		s.next = nil
		if batch == nil {
			s.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), defaultPatience)
		batch.at, batch.err = do(ctx, shard, batch.upTo)
		cancel()
		close(batch.done)
	}
}
