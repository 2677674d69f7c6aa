package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// fanoutWindow is how many writes may be under way to watchers at a time.
const fanoutWindow = 8

// Fanout has watchers see writes for a span and tells how many events came through a second, over all watchers, and how
// long they took from the beginning of the write. The next write waits until all watchers have seen all but a few of
// those before, so that what is measured is what the server can keep up with.
//
// watch follows what is written until ctx ends, and calls seen with the number of each write once; ready tells that it
// has begun. Fanout stops at the first error of either.
func Fanout(ctx context.Context, watchers int, span time.Duration,
	write func(ctx context.Context, n int) error,
	watch func(ctx context.Context, watcher int, ready func(), seen func(n int)) error,
	opened func() error,
) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &fanout{watchers: watchers, free: make(chan struct{}, fanoutWindow)}
	var all, ready sync.WaitGroup
	defer all.Wait()
	ready.Add(watchers)
	for watcher := range watchers {
		var once sync.Once
		begun := func() { once.Do(ready.Done) }
		all.Go(func() {
			defer begun()
			if err := watch(ctx, watcher, begun, f.seen); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	ready.Wait()
	if err := context.Cause(ctx); err != nil {
		return Result{}, err
	}
	if err := opened(); err != nil {
		cancel(err)
		return Result{}, err
	}
	begun := time.Now()
	for n := 0; time.Since(begun) < span; n++ {
		select {
		case f.free <- struct{}{}:
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
		f.begin()
		if err := write(ctx, n); err != nil {
			cancel(err)
			return Result{}, context.Cause(ctx) // of a watch, if that failed first
		}
	}
	for range fanoutWindow { // until all have seen everything
		select {
		case f.free <- struct{}{}:
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
	took := time.Since(begun)
	cancel(nil)
	return summarize(f.delays, took), nil
}

// fanout keeps account of the writes.
type fanout struct {
	watchers int
	free     chan struct{}

	mu     sync.Mutex
	writes []*fanoutWrite
	delays []time.Duration
}

type fanoutWrite struct {
	begun time.Time
	seen  atomic.Int64
}

func (f *fanout) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, &fanoutWrite{begun: time.Now()})
}

func (f *fanout) seen(n int) {
	f.mu.Lock()
	w := f.writes[n]
	f.delays = append(f.delays, time.Since(w.begun))
	f.mu.Unlock()
	if w.seen.Add(1) == int64(f.watchers) {
		<-f.free
	}
}
