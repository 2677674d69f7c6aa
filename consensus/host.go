package consensus

import (
	"context"
	"errors"

	"shoal/consensus/store"
)

var errGrowing = errors.New("not reached yet")

// Host is one peer's part in the store.
type Host struct {
	cfg        Config
	leadership chan Leadership
}

// Open starts the host over its data folder: replicas that the folder holds come
// back to life, nothing else happens until Found is called or another peer's
// assignment names this one.
//
// Errors: ErrForeignData, ErrNewerFormat, and what the disk says.
func Open(_ context.Context, cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Host{cfg: cfg, leadership: make(chan Leadership)}, nil
}

// Found founds a cluster: the meta shard and the data shards, with this peer as
// their only voter. Error: ErrAlreadyFounded.
func (h *Host) Found(context.Context) error { return errGrowing }

// Propose applies the transaction to the shard and returns its outcome once this
// is durable. ID and Stamp are filled in when zero. Retries inside are safe: the ID
// keeps the transaction from being applied twice.
//
// Errors: ErrNoQuorum, ErrUnknownOutcome, ErrTooLarge, ErrClockSkew,
// ErrUnknownShard, ErrClosed. A failed condition is no error: Result.OK is false.
func (h *Host) Propose(context.Context, uint64, store.Transaction) (store.Result, error) {
	return store.Result{}, errGrowing
}

// Get reads one key. at is the shard's revision that the answer shows.
func (h *Host) Get(context.Context, uint64, string, ReadLevel) (kv store.KV, found bool, at store.Revision, err error) {
	return store.KV{}, false, 0, errGrowing
}

// List reads a range of keys at one revision. Errors: ErrCompacted and ErrFuture
// for At, ErrNoQuorum for a linearizable one.
func (h *Host) List(context.Context, uint64, ListOptions, ReadLevel) (ListResult, error) {
	return ListResult{}, errGrowing
}

// Watch delivers the shard's events in revision order, without gap or double, also
// over changes of leader and of the replica they are read from. It ends with ctx
// or Watch.Stop.
//
// Error: ErrCompacted if After is older than the history.
func (h *Host) Watch(context.Context, uint64, WatchOptions) (*Watch, error) { return nil, errGrowing }

// Close makes the shard's closed timestamp, which is its last applied revision, at
// least upTo: afterwards no event at or below the returned revision can appear. It
// is a linearizable barrier for reads through this host. Concurrent calls share
// one log entry. Error: ErrFuture if upTo is ahead of the clock.
func (h *Host) Close(context.Context, uint64, store.Revision) (store.Revision, error) {
	return 0, errGrowing
}

// Now is the hybrid logical clock: at or above every revision this host has seen,
// and the wall clock; its shard bits are zero.
func (h *Host) Now() store.Revision { return 0 }

// Leadership reports leaderships of local replicas as they are gained and lost. A
// slow reader sees the newest state of each shard, not every step.
func (h *Host) Leadership() <-chan Leadership { return h.leadership }

// Local is the newest snapshot of the local replica, false if there is none.
func (h *Host) Local(uint64) (View, bool) { return View{}, false }

// Status is what this host knows of every shard, in order of their numbers.
func (h *Host) Status() []ShardStatus { return nil }

// Where answers where a shard's replicas are and who leads it.
func (h *Host) Where(context.Context, uint64) (ShardStatus, error) {
	return ShardStatus{}, errGrowing
}

// Shutdown hands the local replicas' leaderships to other peers, then stops. The
// data stay in the folder.
func (h *Host) Shutdown(context.Context) error { return nil }

// Watch is a running watch.
type Watch struct {
	events chan []store.Event
	err    error
}

// Events delivers batches in revision order. It is closed when the watch ends; then
// Err says why.
func (w *Watch) Events() <-chan []store.Event { return w.events }

// Err is why the watch ended, once Events is closed: nil after Stop or the end of
// its ctx, else ErrSlowWatcher, ErrCompacted or ErrClosed.
func (w *Watch) Err() error { return w.err }

// Stop ends the watch and releases what it holds.
func (w *Watch) Stop() {}
