package storage

import (
	"context"
	"errors"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"shoal/consensus"
	"shoal/consensus/store"
)

// firstProvisional is where provisional revisions begin: far above every revision
// that a shard assigns, so that none can be taken for a real one.
const firstProvisional = store.Revision(1) << 62

// Transaction collects writes to be committed together: one decision, one log entry
// per shard (D4).
//
// Under a context from WithTransaction, Create, GuaranteedUpdate and Delete of any
// Storage add to the transaction instead of writing. Later reads of the same keys
// under that context (Get, and the states that GuaranteedUpdate and Delete judge)
// see the collected writes; lists and watches do not. Other keys are read from the
// local replica where there is one: each write carries the revision that it was
// made from as a condition, so a stale read costs a conflict, never a lost update.
//
// Objects handed back before the commit carry provisional resourceVersions. A
// successful Commit sets the final ones in those same objects.
//
// A Transaction may be used by several goroutines, and is committed once: see Commit.
type Transaction struct {
	mu          sync.Mutex
	writes      map[string]*pendingWrite
	order       []*pendingWrite
	required    []requirement
	provisional store.Revision
	spent       bool
	// proposals are what was asked of the shards.
	proposals []*proposal
}

// pendingWrite is the sum of a transaction's writes to one key. Its expect is the
// revision in the store that the first of them was made from.
type pendingWrite struct {
	write
	storage     *Storage
	provisional store.Revision
	// outs are the objects handed back, which get the final resourceVersion.
	outs []runtime.Object
}

type requirement struct {
	storage *Storage
	key     string
	rev     store.Revision
}

var errSpent = errors.New("storage: the transaction was committed already")

type transactionKey struct{}

// NewTransaction makes an empty transaction.
func NewTransaction() *Transaction {
	return &Transaction{writes: map[string]*pendingWrite{}, provisional: firstProvisional}
}

// WithTransaction makes a context under which writes are collected in tx.
func WithTransaction(ctx context.Context, tx *Transaction) context.Context {
	return context.WithValue(ctx, transactionKey{}, tx)
}

type plannedUID struct{}

// WithUID makes Create under the context give its object this UID in place of the one that upstream's registry drew. A decision that
// creates an owner and what it owns needs to know the owner's UID before the commit.
func WithUID(ctx context.Context, uid types.UID) context.Context {
	return context.WithValue(ctx, plannedUID{}, uid)
}

// keepUID carries out WithUID.
func keepUID(ctx context.Context, obj runtime.Object) error {
	uid, planned := ctx.Value(plannedUID{}).(types.UID)
	if !planned {
		return nil
	}
	accessor, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	accessor.SetUID(uid)
	return nil
}

func transactionOf(ctx context.Context) *Transaction {
	tx, _ := ctx.Value(transactionKey{}).(*Transaction)
	return tx
}

// Require makes the commit depend on an object that the transaction does not write:
// its resourceVersion must still be rev, or with rev 0 it must not exist. key is
// the one that upstream's registry would pass. The condition is checked in the
// object's own shard, together with the writes to that shard.
func (t *Transaction) Require(s *Storage, key string, rev store.Revision) error {
	key, err := s.keys.prepare(key, false)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.required = append(t.required, requirement{storage: s, key: key, rev: rev})
	return nil
}

// Len is the number of objects that the transaction would write.
func (t *Transaction) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.writes)
}

// state is what a read under the transaction sees: the pending write of the key, or
// else what is stored.
func (t *Transaction) state(ctx context.Context, s *Storage, key string) (store.KV, *pendingWrite, error) {
	t.mu.Lock()
	pending := t.writes[key]
	t.mu.Unlock()
	if pending != nil {
		return store.KV{}, pending, nil
	}
	shard, err := s.shardOf(ctx, key)
	if err != nil {
		return store.KV{}, nil, err
	}
	level := consensus.Linearizable
	if _, here := s.host.Local(shard); here {
		level = consensus.Local
	}
	kv, _, err := s.get(ctx, shard, key, level)
	return kv, nil, err
}

// collect adds a write. It is refused if it was not made from the state that the
// transaction has reached for its key.
func (t *Transaction) collect(_ context.Context, s *Storage, w write, out runtime.Object) (outcome, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spent {
		return outcome{}, errSpent
	}
	t.provisional++
	pending := t.writes[w.key]
	if pending == nil {
		pending = &pendingWrite{write: w, storage: s, provisional: t.provisional}
		t.writes[w.key] = pending
		t.order = append(t.order, pending)
	} else if !pending.follow(w, t.provisional) {
		return outcome{pending: pending}, nil
	}
	if out != nil {
		pending.outs = append(pending.outs, out)
	}
	return outcome{applied: true, revision: t.provisional}, nil
}

// follow replaces the pending write by one made from its result, false if it was
// made from another state.
func (p *pendingWrite) follow(w write, provisional store.Revision) bool {
	reached := p.provisional
	if p.remove {
		reached = 0
	}
	if w.expect != reached {
		return false
	}
	w.expect = p.expect
	p.write, p.provisional = w, provisional
	return true
}
