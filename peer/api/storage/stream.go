package storage

import (
	"context"
	"errors"
	"reflect"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

const (
	// maxBacklog bounds how many events a merged stream holds back for a shard that
	// cannot close, because it has no quorum, or for a reader that does not read.
	maxBacklog = 10000
	// closeRetry is the pause after a failed attempt to close a shard, closeInterval
	// the shortest time between two attempts: under load other shards' own writes
	// close them, and many events share one attempt. It is also how far one kind's
	// events may lag behind another's: upstream's quota controller takes a pod that
	// it has not seen yet for absent, and at 50 ms it lost count.
	closeRetry    = 200 * time.Millisecond
	closeInterval = 10 * time.Millisecond
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
	// closed reports attempts to close a shard; closing and asked say what is under
	// way and what was confirmed, per shard.
	closed  chan attempt
	closing []bool
	asked   []store.Revision
	// target is the revision up to which the frontier was asked to advance.
	target store.Revision
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
		closed:  make(chan attempt, len(shards)),
		closing: make([]bool, len(shards)),
		asked:   make([]store.Revision, len(shards)),
	}
}

func (f *fan) run(ctx context.Context, st *stream) {
	ctx, cancel := context.WithCancel(ctx)
	defer close(st.batches)
	defer cancel()
	for _, watch := range f.watches {
		defer watch.Stop()
	}
	choice := f.choice(ctx, st)
	var next batch
	var reported store.Revision
	for {
		next.events = append(next.events, f.merger.release()...)
		next.frontier = f.merger.frontier()
		choice[caseOut].Chan, choice[caseOut].Send = reflect.Value{}, reflect.Value{}
		if len(next.events) > 0 || next.frontier > reported {
			choice[caseOut].Chan, choice[caseOut].Send = reflect.ValueOf(st.batches), reflect.ValueOf(next)
		}
		if f.merger.count+len(next.events) > maxBacklog {
			st.err = errBacklog
			return
		}
		f.close(ctx)
		switch chosen, received, open := reflect.Select(choice); chosen {
		case caseDone:
			return
		case caseOut:
			reported = next.frontier
			next = batch{}
		case caseAdvance:
			f.target = f.merger.highest()
		case caseClosed:
			a := received.Interface().(attempt)
			f.closing[a.index] = false
			if a.err == nil {
				f.asked[a.index] = max(f.asked[a.index], a.upTo)
			}
		default:
			index := chosen - firstWatch
			if !open {
				st.err = f.watches[index].Err()
				return
			}
			f.merger.push(index, received.Interface().([]store.Event))
		}
	}
}

// The cases of a fan's select. A goroutine per shard to feed one channel would cost
// more: every watch of an informer over all namespaces is a fan.
const (
	caseDone = iota
	caseOut
	caseAdvance
	caseClosed
	firstWatch
)

func (f *fan) choice(ctx context.Context, st *stream) []reflect.SelectCase {
	receive := func(channel any) reflect.SelectCase {
		return reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(channel)}
	}
	choice := []reflect.SelectCase{
		caseDone:    receive(ctx.Done()),
		caseOut:     {Dir: reflect.SelectSend},
		caseAdvance: receive(st.advance),
		caseClosed:  receive(f.closed),
	}
	for _, watch := range f.watches {
		choice = append(choice, receive(watch.Events()))
	}
	return choice
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
	wait := closeInterval
	_, err := f.host.Close(ctx, f.shards[index], upTo)
	if err != nil {
		wait = closeRetry
	}
	if pause(ctx, wait) != nil {
		return
	}
	f.closed <- attempt{index: index, upTo: upTo, err: err} // room for one per shard
}
