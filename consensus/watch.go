package consensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"shoal/consensus/store"
)

// Watch is a running watch.
type Watch struct {
	events chan []store.Event
	cancel context.CancelFunc
	mu     sync.Mutex
	err    error
	// source is where the watch reads from, nil between two; wanted is the highest
	// revision that a mark was asked for at.
	source source
	wanted store.Revision
}

// Events delivers batches in revision order. It is closed when the watch ends; then
// Err says why. Values are shared and must not be changed.
func (w *Watch) Events() <-chan []store.Event { return w.events }

// Err is why the watch ended, once Events is closed: nil after Stop or the end of
// its ctx, else ErrSlowWatcher, ErrCompacted, ErrNoQuorum or ErrClosed.
func (w *Watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Stop ends the watch and releases what it holds. Batches that were not read yet
// are dropped.
func (w *Watch) Stop() { w.cancel() }

// Mark asks for one progress mark, as soon as the shard is at or above the revision
// and everything up to there was delivered; with 0 at once. A mark that would say
// nothing new is left out. It costs nobody else anything, unlike
// WatchOptions.Progress, which wakes the watch at every change of the shard.
func (w *Watch) Mark(rev store.Revision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted = max(w.wanted, rev, 1)
	if w.source != nil {
		w.source.want(max(rev, 1))
	}
}

// read makes src the watch's source, nil for none.
func (w *Watch) read(src source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.source = src
	if src != nil && w.wanted != 0 {
		src.want(w.wanted)
	}
}

// source is where a watch reads from: a local replica or a peer.
type source interface {
	// next waits for events. Errors: ctx's; errSourceClosed or tryAgain when
	// another source has to be found; else the watch is over.
	next(ctx context.Context) ([]store.Event, error)
	// position is the revision up to which everything was returned by next.
	position() store.Revision
	// want asks for a progress mark at or above the revision.
	want(rev store.Revision)
	stop()
}

// Watch delivers the shard's events in revision order, without gap or double, also
// over changes of leader and of the replica they are read from. It ends with ctx
// or Watch.Stop. A reader may lag as far as the shard's history reaches; then the
// watch is cut with ErrSlowWatcher.
//
// Errors: ErrCompacted if After is older than the history, ErrNoQuorum if no peer
// with a replica that knows a leader answers, ErrClosed.
func (h *Host) Watch(ctx context.Context, shard uint64, opts WatchOptions) (*Watch, error) {
	src, err := h.openSource(ctx, shard, opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &Watch{events: make(chan []store.Event), cancel: cancel}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		src.stop()
		cancel()
		return nil, ErrClosed
	}
	h.loops.Go(func() {
		defer close(w.events)
		defer cancel()
		stopped := context.AfterFunc(h.ctx, cancel)
		defer stopped()
		err := h.pump(ctx, shard, opts, src, w)
		if ctx.Err() != nil {
			err = nil
		}
		if h.ctx.Err() != nil {
			err = ErrClosed
		}
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	})
	return w, nil
}

// pump passes events on and finds a new source where the old one ended.
func (h *Host) pump(ctx context.Context, shard uint64, opts WatchOptions, src source, w *Watch) error {
	w.read(src)
	defer func() {
		w.read(nil)
		if src != nil {
			src.stop()
		}
	}()
	opened, barren := time.Now(), 0
	for {
		events, err := src.next(ctx)
		if len(events) > 0 {
			barren = 0
			select {
			case w.events <- events:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var again *tryAgain
		switch {
		case err == nil:
			continue
		case !errors.Is(err, errSourceClosed) && !errors.As(err, &again):
			return err
		}
		opts.After = src.position()
		w.read(nil)
		src.stop()
		// A source that ends as soon as it is there, time and again, must not keep everybody busy with opening others.
		if time.Since(opened) > barrenFor {
			barren = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff(barren)):
		}
		barren++
		opened = time.Now()
		if src, err = h.reopenSource(ctx, shard, opts); err != nil {
			return err
		}
		w.read(src)
	}
}

// barrenFor is how long a source has to live, or else to deliver something, not to count as one in a row that is of no use.
const barrenFor = time.Second

// cutOffAfter is how long a replica may know no leader before watches leave it: what is
// written elsewhere does not reach it.
const cutOffAfter = 5 * time.Second

var errCutOff = errors.New("its replica is cut off from the others")

// leaveCutOff makes watches leave the replica while it is cut off, until ctx ends.
func (h *Host) leaveCutOff(ctx context.Context, r *replica) {
	for {
		info, changed := h.leaders.get(r.shard)
		if info.LeaderID != 0 {
			r.cutOff.Store(false)
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(cutOffAfter):
			if now, _ := h.leaders.get(r.shard); now.LeaderID == 0 {
				r.cutOff.Store(true)
				if hub := r.hub(); hub != nil {
					hub.detach() // again and again: those that stay look elsewhere each time
				}
			}
		}
	}
}

// reopenSource looks for a source until ctx ends, if the watch is one that stays, or
// else until all that could be one have been asked in vain for the patience of a
// request.
func (h *Host) reopenSource(ctx context.Context, shard uint64, opts WatchOptions) (source, error) {
	for {
		bounded, cancel := context.WithTimeout(ctx, defaultPatience)
		src, err := h.openSource(bounded, shard, opts)
		cancel()
		if err == nil || errors.Is(err, ErrCompacted) || ctx.Err() != nil || h.ctx.Err() != nil || !opts.Stay {
			return src, err
		}
	}
}

func (h *Host) openSource(ctx context.Context, shard uint64, opts WatchOptions) (src source, err error) {
	turns := 0
	err = h.reach(ctx, shard,
		func(_ context.Context, r *replica) error {
			if _, ready := r.view(); !ready {
				return &tryAgain{cause: errNotReady}
			}
			// Every third attempt goes to another peer.
			if turns++; r.cutOff.Load() && (!opts.Stay || turns < 6) {
				return &tryAgain{cause: errCutOff}
			}
			sub, err := r.hub().subscribe(opts)
			if errors.Is(err, errSourceClosed) {
				return &tryAgain{cause: err}
			}
			if err == nil {
				src = sub
			}
			return err
		},
		func(_ context.Context, peer string) error {
			remote, err := h.watchAt(ctx, peer, shard, opts)
			if err == nil {
				src = remote
			}
			return err
		})
	return src, err
}
