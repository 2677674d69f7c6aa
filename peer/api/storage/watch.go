package storage

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	kstorage "k8s.io/apiserver/pkg/storage"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"

	"shoal/consensus"
	"shoal/consensus/store"
)

const (
	// resultBuffer is how many events a watch's reader may lag behind before the
	// stream has to wait for it.
	resultBuffer = 32
	// bookmarkBeforeEnd is how long before the end of its context a watch gets a last
	// bookmark, so that the next one can go on from a recent revision.
	bookmarkBeforeEnd = 2 * time.Second
	// bookmarkPatience is how long a bookmark waits for lagging shards to close.
	bookmarkPatience = 250 * time.Millisecond
)

// Watch implements storage.Interface. Its events come in revision order over all
// namespaces; it may be resumed from any of their revisions, or a bookmark's, on any
// peer.
//
// A watch that cannot begin is an error: a revision ahead of the cluster, a shard
// without quorum. Only a revision that is too old is reported as upstream does it,
// as the watch's only event.
func (s *Storage) Watch(ctx context.Context, key string, opts kstorage.ListOptions) (watch.Interface, error) {
	key, err := s.keys.prepare(key, opts.Recursive)
	if err != nil {
		return nil, err
	}
	after, err := s.minimum(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	if opts.ProgressNotify && s.newFunc == nil {
		return nil, apierrors.NewInternalError(errors.New("progressNotify for watch is unsupported because no newFunc was provided"))
	}
	w := &watcher{
		s: s, key: key, recursive: opts.Recursive, predicate: opts.Predicate,
		all:     opts.Predicate.Empty(),
		results: make(chan watch.Event, resultBuffer),
		poke:    make(chan struct{}, 1),
		fell:    make(chan struct{}, 1),
	}
	if w.all {
		w.predicate = kstorage.Everything
	}
	w.wantInitial = after == 0 && opts.SendInitialEvents == nil || opts.SendInitialEvents != nil && *opts.SendInitialEvents
	w.wantInitialEnd = opts.SendInitialEvents != nil && *opts.SendInitialEvents && opts.Predicate.AllowWatchBookmarks
	w.bookmarks = (opts.Predicate.AllowWatchBookmarks || opts.ProgressNotify) && s.newFunc != nil
	w.ctx, w.cancel = context.WithCancel(ctx)

	started, err := w.start(after, opts)
	for errors.Is(err, errGrown) && w.ctx.Err() == nil {
		started, err = w.start(after, opts)
	}
	if err != nil {
		w.cancel()
		return nil, err
	}
	s.register(w)
	go w.run(started)
	if !w.wantInitial {
		utilflowcontrol.WatchInitialized(ctx)
	}
	return w, nil
}

// watcher is a running watch. It implements watch.Interface.
type watcher struct {
	s         *Storage
	key       string
	recursive bool
	predicate kstorage.SelectionPredicate
	// all says that the predicate accepts everything.
	all bool
	// wantInitial asks for the present objects first, wantInitialEnd for a bookmark
	// after them, bookmarks for one now and then.
	wantInitial, wantInitialEnd, bookmarks bool

	ctx     context.Context
	cancel  context.CancelFunc
	shards  []uint64
	results chan watch.Event
	poke    chan struct{}
	// bookmarked is the revision that the reader was last told to have everything up to.
	bookmarked store.Revision

	// While live, the journal's goroutine delivers by push and nobody else does; mu is
	// held for each step of that and of going over to it and back. fell says that push
	// did not get on.
	mu   sync.Mutex
	live bool
	fell chan struct{}
	// cursor is the place in the events, frontier the revision up to which the reader has
	// everything.
	cursor   *cursor
	frontier store.Revision
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.cancel() }

// begun is how far Watch came before it returned. failed is what the reader will be
// told instead of events.
type begun struct {
	shards []uint64
	snap   snapshot
	cursor *cursor
	failed error
}

// start finds the revision that the watch begins at, and opens the cursor there
// unless a list has to come first.
func (w *watcher) start(after store.Revision, opts kstorage.ListOptions) (begun, error) {
	var b begun
	var err error
	if w.recursive {
		b.shards, err = w.s.shardsOf(w.ctx, w.key)
	} else {
		var shard uint64
		shard, err = w.s.shardOf(w.ctx, w.key)
		b.shards = []uint64{shard}
	}
	switch {
	case err != nil:
	case w.wantInitial:
		want := wanted{minimum: after, newest: opts.ResourceVersion == ""}.on(b.shards...)
		b.snap, err = w.s.pin(w.ctx, b.shards, want)
		if err == nil && b.snap.rev == 0 {
			b.snap.rev, err = w.s.present(w.ctx, b.shards[0], want)
		}
	case after == 0:
		b.snap.rev, err = w.s.confirmed(w.ctx, b.shards)
	default:
		// afterwards no shard can assign a revision that the reader takes for past
		b.snap.rev, err = after, w.s.closeAll(w.ctx, b.shards, after)
	}
	if err == nil && !w.wantInitial {
		b.cursor, err = w.s.openCursor(w.ctx, b.shards, w.key, b.snap.rev)
	}
	if errors.Is(err, consensus.ErrCompacted) || w.ctx.Err() != nil {
		b.failed = err
		return b, nil
	}
	return b, apiError(err)
}

// present is the revision that a single shard shows now.
func (s *Storage) present(ctx context.Context, shard uint64, want wanted) (store.Revision, error) {
	if !want.newest {
		if view, here := s.host.Local(shard); here {
			return max(view.Revision(), want.minimum), nil
		}
	}
	rev, err := s.barrier(ctx, shard)
	return max(rev, want.minimum), err
}

// run owns the watch: it delivers until the context ends or something fails, which
// is then the last event.
func (w *watcher) run(b begun) {
	defer close(w.results)
	defer w.cancel()
	defer w.s.deregister(w)
	err := b.failed
	if err == nil {
		err = w.deliver(b)
	}
	if err == nil || w.ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, errGrown) {
		return
	}
	w.send(watch.Event{Type: watch.Error, Object: errorStatus(watchError(err))})
}

func (w *watcher) deliver(b begun) error {
	w.shards = b.shards
	w.frontier, w.bookmarked = b.snap.rev, b.snap.rev
	if w.wantInitial {
		rev, err := w.initial(b.snap)
		if err != nil {
			return err
		}
		b.snap.rev, w.frontier, w.bookmarked = rev, rev, rev
		utilflowcontrol.WatchInitialized(w.ctx)
		cursor, err := w.s.openCursor(w.ctx, b.shards, w.key, b.snap.rev)
		if err != nil {
			return err
		}
		b.cursor = cursor
	}
	w.cursor = b.cursor
	defer w.close()
	return w.follow()
}

// follow delivers changes until the context ends.
func (w *watcher) follow() error {
	bookmark := time.NewTimer(w.nextBookmark())
	defer bookmark.Stop()
	var due <-chan time.Time
	for {
		own, ready := w.sources()
		select {
		case <-w.ctx.Done():
			return nil
		case next, open := <-own:
			if !open {
				return w.cursor.own.err
			}
			w.cursor.took(next)
			if err := w.forward(next); err != nil {
				return err
			}
		case <-ready:
			w.wait()
			next, err := w.cursor.take()
			if err == nil {
				err = w.forward(next)
			}
			if err != nil {
				return err
			}
		case <-bookmark.C:
			due = w.askBookmark()
			bookmark.Reset(w.nextBookmark())
		case <-w.poke:
			due = w.askBookmark()
		case <-due:
			due = nil
			if err := w.bookmark(); err != nil {
				return err
			}
		}
	}
}

// nextBookmark is the time to the next bookmark: the storage's period, or less if
// the watch is about to end.
func (w *watcher) nextBookmark() time.Duration {
	period := w.s.bookmarkPeriod
	if deadline, ok := w.ctx.Deadline(); ok {
		if left := time.Until(deadline) - bookmarkBeforeEnd; left > 0 {
			period = min(period, left)
		}
	}
	return period
}

// askBookmark lets lagging shards close, and says when to send what has come of it.
func (w *watcher) askBookmark() <-chan time.Time {
	if !w.bookmarks {
		return nil
	}
	w.cursor.advance()
	return time.After(bookmarkPatience)
}

// bookmark tells the reader how far the stream is, if that is news and the end of
// what was committed together; else the next bookmark will tell.
func (w *watcher) bookmark() error {
	w.wait()
	if w.frontier <= w.bookmarked || w.s.cuts(w.ctx, w.shards, w.frontier) {
		return nil
	}
	return w.sendBookmark(w.frontier, false)
}

func (w *watcher) sendBookmark(rev store.Revision, initialEnd bool) error {
	obj := w.s.newFunc()
	if err := w.s.versioner.UpdateObject(obj, uint64(rev)); err != nil {
		return err
	}
	if initialEnd {
		if err := kstorage.AnnotateInitialEventsEndBookmark(obj); err != nil {
			return err
		}
	}
	if w.send(watch.Event{Type: watch.Bookmark, Object: obj}) {
		w.bookmarked = rev
	}
	return nil
}

// initial delivers the objects that exist at the snapshot, and says at which revision
// that came to be.
func (w *watcher) initial(snap snapshot) (store.Revision, error) {
	reader := &rangeReader{s: w.s, snap: snap, want: wanted{newest: true}, prefix: w.key, page: firstPage}
	if !w.recursive {
		reader.end = w.key + "\x00"
	}
	for {
		kvs, err := reader.next(w.ctx)
		if err != nil {
			return 0, err
		}
		for i, kv := range kvs {
			event, err := w.transform(store.Event{Revision: kv.Mod, Key: kv.Key, Value: kv.Value})
			if err != nil {
				return 0, err
			}
			if event != nil && !w.send(*event) {
				return reader.snap.rev, nil
			}
			kvs[i] = store.KV{}
		}
		if !reader.more {
			break
		}
	}
	if w.wantInitialEnd {
		return reader.snap.rev, w.sendBookmark(reader.snap.rev, true)
	}
	return reader.snap.rev, nil
}

// send hands an event to the reader, false if the reader is gone.
func (w *watcher) send(event watch.Event) bool {
	select {
	case w.results <- event:
		return true
	case <-w.ctx.Done():
		return false
	}
}

// errorStatus is an error in the form that a watch can carry.
func errorStatus(err error) *metav1.Status {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	s := status.Status()
	return &s
}

func (s *Storage) register(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches[w] = struct{}{}
	s.recent.shared(len(s.watches) > 1)
}

func (s *Storage) deregister(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watches, w)
	s.recent.shared(len(s.watches) > 1)
}

// RequestWatchProgress implements storage.Interface: watches that want bookmarks get
// one as soon as their shards have closed.
func (s *Storage) RequestWatchProgress(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watches {
		select {
		case w.poke <- struct{}{}:
		default:
		}
	}
	return nil
}
