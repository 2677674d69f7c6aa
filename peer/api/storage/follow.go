package storage

import (
	"k8s.io/apimachinery/pkg/watch"

	"shoal/consensus/store"
)

// A watch is live while it has everything that its journal has: the journal then
// delivers to it. One whose reader lags takes over itself, until it has caught up.

// sources are the channels to wait for: a batch of a stream of the watch's own, or that
// there is something to read. It makes the watch live if it can be.
func (w *watcher) sources() (own <-chan batch, ready <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live {
		return nil, w.fell
	}
	if own, ready = w.cursor.sources(); own != nil || !w.cursor.journal.register(w, w.cursor.at) {
		return own, ready
	}
	select {
	case <-w.fell: // of the last time
	default:
	}
	w.live = true
	return nil, w.fell
}

// push is the journal's delivery of a batch. It never waits for the reader: where that
// has no room, and at a change that cannot be read, it leaves the rest to the watch.
func (w *watcher) push(next batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.live {
		return
	}
	for _, change := range next.events {
		if change.Revision <= w.cursor.at {
			continue // it was read, after it came and before the watch became live
		}
		event, err := w.see(change)
		if err != nil || event != nil && !w.offer(*event) {
			w.fall()
			return
		}
		w.cursor.at = change.Revision
		if event != nil {
			w.frontier = max(w.frontier, change.Revision)
		}
	}
	w.cursor.at = max(w.cursor.at, next.frontier)
	w.frontier = max(w.frontier, next.frontier)
}

// wait ends the journal's delivery: the caller, or whom fell wakes, goes on from the
// cursor.
func (w *watcher) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fall()
}

func (w *watcher) fall() {
	w.live = false
	select {
	case w.fell <- struct{}{}:
	default:
	}
}

// offer hands an event to the reader if that has room.
func (w *watcher) offer(event watch.Event) bool {
	select {
	case w.results <- event:
		return true
	default:
		return false
	}
}

// close gives the cursor back, after the last delivery.
func (w *watcher) close() {
	w.wait()
	w.cursor.journal.deregister(w)
	w.cursor.close()
}

// see is transform for changes of the keys that the watch is about.
func (w *watcher) see(change store.Event) (*watch.Event, error) {
	if !w.recursive && change.Key != w.key {
		return nil, nil
	}
	return w.transform(change)
}

// forward delivers a batch of the stream.
func (w *watcher) forward(next batch) error {
	for _, change := range next.events {
		event, err := w.see(change)
		if err != nil {
			return err
		}
		if event == nil {
			continue
		}
		if !w.send(*event) {
			return nil
		}
		w.frontier = max(w.frontier, change.Revision)
	}
	w.frontier = max(w.frontier, next.frontier)
	return nil
}
