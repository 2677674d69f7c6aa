package store

import (
	"encoding/hex"
	"errors"
	"slices"
)

// ErrCompacted reports that a revision is older than the history reaches back.
// The caller has to read anew (Kubernetes: 410 Gone, reason Expired).
var ErrCompacted = errors.New("revision is older than the shard's history")

// ErrFuture reports a revision that the state has not reached.
var ErrFuture = errors.New("revision is ahead of the shard")

// KV is one stored version of a key. It is immutable once stored: nobody may
// write into Value.
type KV struct {
	Key   string
	Value []byte
	// Create is the revision at which the key came to be, Mod that of its last
	// change. Mod 0 stands for an absent key.
	Create, Mod Revision
	// Expires is when the key may be swept, in unix milliseconds; 0 is never.
	Expires int64
}

// size is what the version's key and value hold, in bytes.
func (kv *KV) size() int64 { return int64(len(kv.Key) + len(kv.Value)) }

// Condition demands that the key's Mod equals Revision; 0 demands that the key
// does not exist.
type Condition struct {
	Key      string
	Revision Revision
}

// Op writes or deletes one key. Expires is in unix milliseconds, 0 is never.
type Op struct {
	Key     string
	Value   []byte
	Delete  bool
	Expires int64
}

// RequestID names a transaction over its retries. The zero ID has no protection
// against being applied twice.
type RequestID [16]byte

// String is the ID in hexadecimal.
func (id RequestID) String() string { return hex.EncodeToString(id[:]) }

// Transaction is applied whole or not at all: if every condition holds, the ops
// are applied in their order. With no ops it only advances the shard's revision to
// at least Stamp (the closed timestamp).
type Transaction struct {
	ID RequestID
	// Stamp is the proposer's clock. Every outcome, also a failed condition, leaves
	// the shard's revision at or above it.
	Stamp      Revision
	Conditions []Condition
	Ops        []Op
}

// Result is the outcome of a transaction.
type Result struct {
	// OK says that all conditions held and the ops are applied.
	OK bool
	// Forgotten says that the transaction was not applied now because it is too old
	// for the table of request IDs: it may have been applied before. Only a
	// transaction whose Stamp lies below the table's reach can meet this.
	Forgotten bool
	// Revision is the shard's revision after the transaction.
	Revision Revision
	// Revisions holds, per op, the key's Mod after it: strictly increasing over the
	// ops that changed something. An op that changed nothing reports the Mod that
	// stands; the deletion of an absent key reports 0.
	Revisions []Revision
	// Failed holds the current KV of each condition that did not hold, Mod 0 for an
	// absent key.
	Failed []KV
}

// MayHold tells whether the conditions of a transaction that failed may hold later on: a key that is there may be gone by then, while a revision
// that was overtaken never comes back. Failures are not remembered, so another attempt of the same request may succeed.
func (r Result) MayHold(tx Transaction) bool {
	if r.OK || len(r.Failed) == 0 {
		return false
	}
	return !slices.ContainsFunc(tx.Conditions, func(c Condition) bool {
		return c.Revision != 0 && slices.ContainsFunc(r.Failed, func(kv KV) bool { return kv.Key == c.Key })
	})
}

// Event is one change of one key, or a progress mark.
type Event struct {
	Revision Revision
	Key      string
	// Value is nil on a deletion.
	Value []byte
	// Prev and PrevMod are the version before; PrevMod 0 says that there was none.
	Prev    []byte
	PrevMod Revision
	// Create is the Create of the version that was written, or of the deleted one.
	Create Revision
	Delete bool
	// Progress marks that every event at or below Revision was delivered. It has no
	// key.
	Progress bool
}

// Size is what the event's values hold in memory, in bytes.
func (e *Event) Size() int { return len(e.Value) + len(e.Prev) }
