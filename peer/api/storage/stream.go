package storage

import (
	"context"
	"errors"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

const (
	// maxBacklog bounds how many events a merged stream holds back for a shard that
	// cannot close, because it has no quorum, or for a reader that does not read.
	maxBacklog = 10000
	// closeRetry is the pause after a failed attempt to close a shard.
	closeRetry = 200 * time.Millisecond
)

// errBacklog ends a merged stream that had to hold back too much.
var errBacklog = errors.New("too many events are waiting for a shard that cannot confirm their order")

// stream is the events of some shards' keys, in revision order.
type stream struct {
	// batches is closed when the stream ends; err then says why.
	batches chan batch
	err     error
	// advance asks a merged stream to bring its frontier up to the newest revision
	// that any shard has reached.
	advance chan struct{}
}

// batch is a stretch of a stream: after its events, all events at or below frontier
// have been delivered.
type batch struct {
	events   []store.Event
	frontier store.Revision
}

// openStream starts delivering the events of the keys with a prefix after a
// revision, which all of the shards must have passed. It ends with the context.
// Error: ErrCompacted.
func (s *Storage) openStream(ctx context.Context, shards []uint64, prefix string, after store.Revision) (*stream, error) {
	watches := make([]*consensus.Watch, 0, len(shards))
	for _, shard := range shards {
		// A shard's own revision at or below after: marks of its progress are then
		// never held back for being below. 0 would mean from now on.
		watch, err := s.host.Watch(ctx, shard, consensus.WatchOptions{
			Prefix: prefix, After: max(onShard(shard, after), 1), Progress: true,
		})
		if err != nil {
			for _, opened := range watches {
				opened.Stop()
			}
			return nil, err
		}
		watches = append(watches, watch)
	}
	st := &stream{batches: make(chan batch), advance: make(chan struct{}, 1)}
	if len(shards) == 1 {
		go st.single(ctx, watches[0], after)
	} else {
		go newFan(s.host, shards, watches, after).run(ctx, st)
	}
	return st, nil
}

// single passes one shard's events on.
func (st *stream) single(ctx context.Context, watch *consensus.Watch, after store.Revision) {
	defer close(st.batches)
	defer watch.Stop()
	frontier := after
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.advance: // a single shard's frontier is as new as it can be
		case events, open := <-watch.Events():
			if !open {
				st.err = watch.Err()
				return
			}
			next := batch{events: make([]store.Event, 0, len(events))}
			for _, event := range events {
				frontier = max(frontier, event.Revision)
				if !event.Progress {
					next.events = append(next.events, event)
				}
			}
			next.frontier = frontier
			select {
			case st.batches <- next:
			case <-ctx.Done():
				return
			}
		}
	}
}

// fan merges several shards' watches. It closes shards on demand: only while an
// event waits for them, or when asked to advance.
type fan struct {
	host    *consensus.Host
	shards  []uint64
	watches []*consensus.Watch
	merger  *merger
	arrived chan arrival
	// closed reports attempts to close a shard; closing and asked say what is under
	// way and what was confirmed, per shard.
	closed  chan attempt
	closing []bool
	asked   []store.Revision
	// target is the revision up to which the frontier was asked to advance.
	target store.Revision
}

type arrival struct {
	index  int
	events []store.Event
	end    bool
	err    error
}

type attempt struct {
	index int
	upTo  store.Revision
	err   error
}

func newFan(host *consensus.Host, shards []uint64, watches []*consensus.Watch, after store.Revision) *fan {
	return &fan{
		host: host, shards: shards, watches: watches,
		merger:  newMerger(shards, after),
		arrived: make(chan arrival),
		closed:  make(chan attempt, len(shards)),
		closing: make([]bool, len(shards)),
		asked:   make([]store.Revision, len(shards)),
	}
}

func (f *fan) run(ctx context.Context, st *stream) {
	ctx, cancel := context.WithCancel(ctx)
	defer close(st.batches)
	defer cancel()
	for i, watch := range f.watches {
		go f.collect(ctx, i, watch)
	}
	var next batch
	var reported store.Revision
	for {
		var out chan batch
		next.events = append(next.events, f.merger.release()...)
		next.frontier = f.merger.frontier()
		if len(next.events) > 0 || next.frontier > reported {
			out = st.batches
		}
		if f.merger.count+len(next.events) > maxBacklog {
			st.err = errBacklog
			return
		}
		f.close(ctx)
		select {
		case <-ctx.Done():
			return
		case out <- next:
			reported = next.frontier
			next = batch{}
		case a := <-f.arrived:
			if a.end {
				st.err = a.err
				return
			}
			f.merger.push(a.index, a.events)
		case <-st.advance:
			f.target = f.merger.highest()
		case a := <-f.closed:
			f.closing[a.index] = false
			if a.err == nil {
				f.asked[a.index] = max(f.asked[a.index], a.upTo)
			}
		}
	}
}

// collect feeds one shard's watch into the merge.
func (f *fan) collect(ctx context.Context, index int, watch *consensus.Watch) {
	defer watch.Stop()
	for {
		a := arrival{index: index}
		select {
		case <-ctx.Done():
			return
		case events, open := <-watch.Events():
			a.events = events
			if !open {
				a.end, a.err = true, watch.Err()
			}
		}
		select {
		case f.arrived <- a:
		case <-ctx.Done():
			return
		}
		if a.end {
			return
		}
	}
}

// close asks the shards that keep events or a requested frontier waiting to close.
// Once a shard has agreed, its watch delivers a mark of its own; it is not asked
// twice for the same revision.
func (f *fan) close(ctx context.Context) {
	upTo := max(f.merger.newestWaiting(), f.target)
	if upTo == 0 {
		return
	}
	for _, index := range f.merger.behind(upTo) {
		target := closeTarget(f.shards[index], upTo)
		if f.closing[index] || f.asked[index] >= target {
			continue
		}
		f.closing[index] = true
		go f.attempt(ctx, index, target)
	}
}

func (f *fan) attempt(ctx context.Context, index int, upTo store.Revision) {
	_, err := f.host.Close(ctx, f.shards[index], upTo)
	if err != nil && pause(ctx, closeRetry) != nil {
		return
	}
	f.closed <- attempt{index: index, upTo: upTo, err: err} // room for one per shard
}
