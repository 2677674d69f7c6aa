package consensus

import (
	"errors"
	"fmt"

	"shoal/consensus/logstore"
	"shoal/consensus/store"
)

var (
	// ErrCompacted reports that a revision is older than the shard's history.
	ErrCompacted = store.ErrCompacted
	// ErrFuture reports a revision that the shard has not reached, or one that lies
	// further ahead of this peer's clock than clocks may differ.
	ErrFuture = store.ErrFuture
	// ErrNoQuorum reports that a shard has no leader that can commit or confirm a
	// read, because too many of its replicas are lost or unreachable. Nothing was
	// written. Errors of this kind name the shard: see ShardError.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUnknownOutcome reports that a transaction was handed to the shard and no
	// answer came in time: it may or may not have been applied. Proposing it again
	// with the same RequestID and Stamp is safe.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrTooLarge reports a transaction beyond Config.MaxTransaction. Nothing was
	// written.
	ErrTooLarge = errors.New("transaction is too large")
	// ErrClockSkew reports that this peer's clock is further from its peers' median
	// than store.MaxAhead or store.MaxBehind, so that it must not stamp revisions.
	// Nothing was written.
	ErrClockSkew = errors.New("this peer's clock is too far off the other peers'")
	// ErrSlowWatcher reports that a watch was cut because its reader fell behind the
	// shard's history. The reader has to list and watch anew.
	ErrSlowWatcher = errors.New("watcher is too slow and was cut")
	// ErrUnknownShard reports a shard that no reachable peer knows.
	ErrUnknownShard = errors.New("unknown shard")
	// ErrClosed reports that the host was shut down.
	ErrClosed = errors.New("consensus host is shut down")
	// ErrForeignData reports a data folder that belongs to another cluster or peer.
	ErrForeignData = errors.New("data folder belongs elsewhere")
	// ErrNewerFormat reports a data folder written by a newer version.
	ErrNewerFormat = errors.New("data folder has a newer format")
	// ErrAlreadyFounded reports a founding over existing state.
	ErrAlreadyFounded = errors.New("data folder already holds a cluster")
)

// ShardError says which shard an error is about, and why. errors.Is finds Kind
// (one of the Err… values) and Cause.
type ShardError struct {
	Shard uint64
	Kind  error
	Cause error
}

func (e *ShardError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("shard %d: %v", e.Shard, e.Kind)
	}
	return fmt.Sprintf("shard %d: %v: %v", e.Shard, e.Kind, e.Cause)
}

// Unwrap gives both the kind and the cause to errors.Is and errors.As.
func (e *ShardError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

func shardError(shard uint64, kind, cause error) error {
	return &ShardError{Shard: shard, Kind: kind, Cause: cause}
}

// ErrDamaged reports a log store that cannot be read as a whole. Damage of one
// replica's log alone is no error of Open: see ShardStatus.Quarantine.
var ErrDamaged = logstore.ErrDamaged
