package storage

import (
	"context"
	"errors"
	"reflect"
	"time"

	"shoal/consensus"
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

const (
	// maxBacklog and maxBacklogBytes bound how many events a merged stream takes out
	// of one shard's history while they wait, for a shard that cannot close or for a
	// reader that does not read. What else waits does so in the history.
	maxBacklog      = 1000
	maxBacklogBytes = 1 << 20
	// closeRetry is the pause after a failed attempt to close a shard, closeInterval
	// the shortest time between two attempts: under load other shards' own writes
	// close them, and many events share one attempt. It is also how far one kind's
	// events may lag behind another's: upstream's quota controller takes a pod that
	// it has not seen yet for absent, and at 50 ms it lost count.
	closeRetry    = 200 * time.Millisecond
	closeInterval = 10 * time.Millisecond
)

// errUnordered ends a merged stream that waited for a shard for longer than the
// other shards' histories reach.
var errUnordered = errors.New("events waited too long for a shard that cannot confirm their order")

// errGrown ends a stream over all namespaces when a data shard is added: it would not
// show that one's. Whoever reads it goes on from where it was.
var errGrown = errors.New("a data shard was added")

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
	size     int // of the events' values, in bytes
	frontier store.Revision
}

func (b *batch) add(events []store.Event) {
	for i := range events {
		b.size += events[i].Size()
	}
	b.events = append(b.events, events...)
}

// openStream starts delivering the events of the keys with a prefix after a
// revision, which all of the shards must have passed. It ends with the context.
// Error: ErrCompacted.
func (s *Storage) openStream(ctx context.Context, shards []uint64, prefix string, after store.Revision) (*stream, error) {
	grown, err := s.growth(ctx, shards, prefix)
	if err != nil {
		return nil, err
	}
	watches := make([]*consensus.Watch, 0, len(shards))
	for _, shard := range shards {
		// A shard's own revision at or below after: marks of its progress are then
		// never held back for being below. 0 would mean from now on.
		watch, err := s.host.Watch(ctx, shard, consensus.WatchOptions{Prefix: prefix, After: max(merge.OnShard(shard, after), 1)})
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
		go st.single(ctx, watches[0], after, grown)
	} else {
		go newFan(s.host, shards, watches, after).run(ctx, st, grown)
	}
	return st, nil
}

// growth tells a stream over all namespaces of data shards that it lacks. The zero
// value never does: the stream's keys are in no other shard ever.
type growth struct {
	s      *Storage
	shards int
	// told is closed when this host has learned of a shard; it may be one of the stream's.
	told <-chan struct{}
}

// growth of the shards that a prefix is in. Error: errGrown, if some were added already.
func (s *Storage) growth(ctx context.Context, shards []uint64, prefix string) (growth, error) {
	if _, whole := s.keys.namespace(prefix); !whole {
		return growth{}, nil
	}
	g := growth{s: s, shards: len(shards)}
	return g, g.look(ctx)
}

// look is errGrown if there are more shards now; otherwise told is new.
func (g *growth) look(ctx context.Context) error {
	g.told = g.s.host.ShardsChanged() // before the directory: what it shows already is not told again
	all, err := g.s.shards.All(ctx)
	if err == nil && len(all) > g.shards {
		return errGrown
	}
	return err
}

// single passes one shard's events on.
func (st *stream) single(ctx context.Context, watch *consensus.Watch, after store.Revision, grown growth) {
	defer close(st.batches)
	defer watch.Stop()
	frontier := after
	for {
		select {
		case <-ctx.Done():
			return
		case <-grown.told:
			if st.err = grown.look(ctx); st.err != nil {
				return
			}
		case <-st.advance:
			watch.Mark(0)
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
					next.size += event.Size()
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
	merger  *merge.Merger
	// closed reports attempts to close a shard; closing says which are under way,
	// agreed what was confirmed, and marked what a mark was asked for at, per shard.
	closed  chan attempt
	closing []bool
	agreed  []store.Revision
	marked  []store.Revision
	// advancing is until when the frontier is to follow the newest revision of any
	// shard, without an event that asks for it.
	advancing time.Time
}

type attempt struct {
	index int
	upTo  store.Revision
	err   error
}

func newFan(host *consensus.Host, shards []uint64, watches []*consensus.Watch, after store.Revision) *fan {
	return &fan{
		host: host, shards: shards, watches: watches,
		merger:  merge.New(shards, after),
		closed:  make(chan attempt, len(shards)),
		closing: make([]bool, len(shards)),
		agreed:  make([]store.Revision, len(shards)),
		marked:  make([]store.Revision, len(shards)),
	}
}

func (f *fan) run(ctx context.Context, st *stream, grown growth) {
	ctx, cancel := context.WithCancel(ctx)
	defer close(st.batches)
	defer cancel()
	for _, watch := range f.watches {
		defer watch.Stop()
	}
	choice := f.choice(ctx, st, grown)
	var next batch
	var reported store.Revision
	for {
		if len(next.events) < maxBacklog && next.size < maxBacklogBytes {
			next.add(f.merger.Release(maxBacklog, maxBacklogBytes))
			next.frontier = f.merger.Frontier()
		}
		choice[caseOut].Chan, choice[caseOut].Send = reflect.Value{}, reflect.Value{}
		if len(next.events) > 0 || next.frontier > reported {
			choice[caseOut].Chan, choice[caseOut].Send = reflect.ValueOf(st.batches), reflect.ValueOf(next)
		}
		f.receive(choice)
		f.close(ctx)
		switch chosen, received, open := reflect.Select(choice); chosen {
		case caseDone:
			return
		case caseOut:
			reported = next.frontier
			next = batch{}
		case caseGrown:
			if st.err = grown.look(ctx); st.err != nil {
				return
			}
			choice[caseGrown].Chan = reflect.ValueOf(grown.told)
		case caseAdvance:
			f.advance()
		case caseClosed:
			a := received.Interface().(attempt)
			f.closing[a.index] = false
			if a.err == nil {
				f.agreed[a.index] = max(f.agreed[a.index], a.upTo)
			}
		default:
			index := chosen - firstWatch
			if !open {
				st.err = f.ended(index)
				return
			}
			f.merger.Push(index, received.Interface().([]store.Event))
		}
	}
}

// ended says why a shard's watch ended.
func (f *fan) ended(index int) error {
	err := f.watches[index].Err()
	if errors.Is(err, consensus.ErrSlowWatcher) && len(f.merger.Behind(f.merger.NewestWaiting())) > 0 {
		return errUnordered
	}
	return err
}

// The cases of a fan's select. A goroutine per shard to feed one channel would cost
// more.
const (
	caseDone = iota
	caseOut
	caseAdvance
	caseClosed
	caseGrown
	firstWatch
)

func (f *fan) choice(ctx context.Context, st *stream, grown growth) []reflect.SelectCase {
	receive := func(channel any) reflect.SelectCase {
		return reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(channel)}
	}
	choice := []reflect.SelectCase{
		caseDone:    receive(ctx.Done()),
		caseOut:     {Dir: reflect.SelectSend},
		caseAdvance: receive(st.advance),
		caseClosed:  receive(f.closed),
		caseGrown:   receive(grown.told),
	}
	for _, watch := range f.watches {
		choice = append(choice, receive(watch.Events()))
	}
	return choice
}

// receive listens to the shards whose events would not only add to a backlog.
// Nobody else waits for a shard with waiting events, so that cannot block the merge.
func (f *fan) receive(choice []reflect.SelectCase) {
	for i, watch := range f.watches {
		choice[firstWatch+i].Chan = reflect.Value{}
		if !f.merger.Crowded(i, maxBacklog, maxBacklogBytes) {
			choice[firstWatch+i].Chan = reflect.ValueOf(watch.Events())
		}
	}
}

// advance finds out how far the shards are.
func (f *fan) advance() {
	f.advancing = time.Now().Add(bookmarkPatience)
	for _, watch := range f.watches {
		watch.Mark(0)
	}
}

// close asks the shards that keep events or a requested frontier waiting to tell
// when they have passed, and to close if they have not.
func (f *fan) close(ctx context.Context) {
	upTo := f.merger.NewestWaiting()
	if time.Now().Before(f.advancing) {
		upTo = max(upTo, f.merger.Highest())
	}
	if upTo == 0 {
		return
	}
	for _, index := range f.merger.Behind(upTo) {
		shard := f.shards[index]
		target := merge.CloseTarget(shard, upTo)
		if f.marked[index] < target {
			f.marked[index] = target
			f.watches[index].Mark(target)
		}
		if f.closing[index] || f.agreed[index] >= target {
			continue
		}
		if view, here := f.host.Local(shard); here && view.Revision() >= target {
			continue // the mark is on its way
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
