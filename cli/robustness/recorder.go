package main

import (
	"fmt"
	"sync"
	"time"

	"shoal/sim/history"
)

// recorder collects what all clients do and see, on one clock.
type recorder struct {
	began time.Time

	lock    sync.Mutex
	history history.History
	ids     int
}

func newRecorder(meta history.Meta) *recorder {
	r := &recorder{began: time.Now()}
	meta.Began = r.began
	r.history.Meta = meta
	return r
}

// now is the time since the recording began.
func (r *recorder) now() time.Duration { return time.Since(r.began) }

func (r *recorder) id() int {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.ids++
	return r.ids
}

// value is one that nobody else writes.
func (r *recorder) value(client int) string { return fmt.Sprintf("c%d-%d", client, r.id()) }

func (r *recorder) operation(op history.Operation) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Operations = append(r.history.Operations, op)
}

func (r *recorder) watch(w history.Watch) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Watches = append(r.history.Watches, w)
}

func (r *recorder) fault(f history.Fault) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Faults = append(r.history.Faults, f)
}
