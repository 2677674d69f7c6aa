package clients

import (
	"fmt"
	"sync"
	"time"

	"shoal/sim/history"
)

// Recorder collects what all clients do and see, on one clock.
type Recorder struct {
	began time.Time

	lock    sync.Mutex
	history history.History
	ids     int
}

// NewRecorder begins a recording.
func NewRecorder(meta history.Meta) *Recorder {
	r := &Recorder{began: time.Now()}
	meta.Began = r.began
	r.history.Meta = meta
	return r
}

// Now is the time since the recording began.
func (r *Recorder) Now() time.Duration { return time.Since(r.began) }

// At is a moment as the time since the recording began.
func (r *Recorder) At(moment time.Time) time.Duration { return moment.Sub(r.began) }

func (r *Recorder) id() int {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.ids++
	return r.ids
}

// value is one that nobody else writes.
func (r *Recorder) value(client int) string { return fmt.Sprintf("c%d-%d", client, r.id()) }

func (r *Recorder) operation(op history.Operation) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Operations = append(r.history.Operations, op)
}

func (r *Recorder) watch(w history.Watch) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Watches = append(r.history.Watches, w)
}

// Fault notes that something was done to the cluster.
func (r *Recorder) Fault(f history.Fault) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.history.Faults = append(r.history.Faults, f)
}

// History is what was recorded. Nobody may be recording any more.
func (r *Recorder) History() *history.History { return &r.history }
