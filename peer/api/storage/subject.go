package storage

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/store"
)

// subject is the object that an update or a deletion is about, in the state that it
// is being judged in.
type subject struct {
	s   *Storage
	key string
	// kind is the Go type of the object, for making empty ones.
	kind reflect.Value
	// ignoreNotFound takes an absent object for an empty one.
	ignoreNotFound bool
	// expectCorrupt takes only an object that cannot be read; obj stays nil.
	expectCorrupt bool

	obj   runtime.Object
	meta  kstorage.ResponseMeta
	rev   store.Revision
	data  []byte // encoded, not sealed
	stale bool   // to be written again even if unchanged
	// fresh says that the state was read from the store, not suggested.
	fresh bool
	// seen says that it is the caller's own, see WithSeen: it has no data.
	seen bool
}

func (s *Storage) newSubject(key string, out runtime.Object) (*subject, error) {
	kind, err := conversion.EnforcePtr(out)
	if err != nil {
		return nil, fmt.Errorf("output object: %w", err)
	}
	return &subject{s: s, key: key, kind: kind}, nil
}

// load takes the suggested state. Without one it takes what a local replica shows,
// which saves a round trip and is checked in the same way, or reads.
func (sub *subject) load(ctx context.Context, suggestion runtime.Object) error {
	if suggestion == nil {
		if taken, err := sub.loadSeen(ctx); taken || err != nil {
			return err
		}
		if transactionOf(ctx) == nil && !sub.expectCorrupt && sub.loadLocal(ctx) {
			return nil
		}
		return sub.refresh(ctx)
	}
	version, err := sub.s.versioner.ObjectResourceVersion(suggestion)
	if err != nil {
		return fmt.Errorf("resourceVersion of the suggested object: %w", err)
	}
	// the stored form has no version; the caller's object gets it back
	data, err := sub.s.encode(suggestion)
	if err != nil {
		return err
	}
	if err := sub.s.versioner.UpdateObject(suggestion, version); err != nil {
		return fmt.Errorf("restore the resourceVersion of the suggested object: %w", err)
	}
	sub.obj, sub.data, sub.rev = suggestion, data, store.Revision(version)
	sub.meta = kstorage.ResponseMeta{ResourceVersion: version}
	sub.stale, sub.fresh = false, false
	return nil
}

// loadLocal takes a local replica's version as a suggestion, false if there is none
// or none that can be read.
func (sub *subject) loadLocal(ctx context.Context) bool {
	shard, err := sub.s.shardOf(ctx, sub.key)
	if err != nil {
		return false
	}
	view, here := sub.s.host.Local(shard)
	if !here {
		return false
	}
	kv, found := view.Get(sub.key)
	if !found || sub.accept(ctx, kv) != nil {
		return false
	}
	sub.fresh = false
	return true
}

// refresh reads the state that a write now would meet.
func (sub *subject) refresh(ctx context.Context) error {
	if tx := transactionOf(ctx); tx != nil {
		kv, pending, err := tx.state(ctx, sub.s, sub.key)
		if err != nil {
			return apiError(err)
		}
		if pending != nil {
			return sub.acceptPending(pending)
		}
		return sub.accept(ctx, kv)
	}
	shard, err := sub.s.shardOf(ctx, sub.key)
	if err != nil {
		return apiError(err)
	}
	kv, _, err := sub.s.get(ctx, shard, sub.key, consensus.Linearizable)
	if err != nil {
		return apiError(err)
	}
	return sub.accept(ctx, kv)
}

// reconsider decides about an error that came out of judging the state: it is
// returned if the state is what is stored; nil says that the state was old and the
// judgement has to be repeated.
func (sub *subject) reconsider(ctx context.Context, verdict error) error {
	if sub.fresh {
		return verdict
	}
	judged := sub.rev
	if err := sub.refresh(ctx); err != nil {
		return err
	}
	if sub.rev == judged {
		return verdict
	}
	return nil
}

// retake takes the state that stood in a write's way.
func (sub *subject) retake(ctx context.Context, refused outcome) error {
	if refused.pending != nil {
		return sub.acceptPending(refused.pending)
	}
	return sub.accept(ctx, refused.current)
}

// accept takes a stored version, or with Mod 0 its absence, as the state.
func (sub *subject) accept(ctx context.Context, kv store.KV) error {
	sub.obj, sub.meta, sub.rev, sub.data = sub.empty(), kstorage.ResponseMeta{}, 0, nil
	sub.stale, sub.fresh, sub.seen = false, true, false
	if kv.Mod == 0 {
		return sub.acceptAbsence()
	}
	sub.rev = kv.Mod
	sub.meta = kstorage.ResponseMeta{ResourceVersion: uint64(kv.Mod), TTL: remaining(kv.Expires)}
	data, stale, err := sub.s.open(ctx, sub.key, kv.Value)
	if err != nil {
		if !sub.expectCorrupt {
			return kstorage.NewInternalError(err)
		}
		sub.obj, sub.stale = nil, true
		return nil
	}
	sub.data, sub.stale = data, stale
	if err := sub.s.decode(data, sub.obj, kv.Mod); err != nil {
		var corrupt *corruptError
		if !sub.expectCorrupt || !errors.As(err, &corrupt) {
			return err
		}
		sub.obj = nil
		return nil
	}
	if sub.expectCorrupt {
		return kstorage.NewInvalidObjError(sub.key, "unsafe deletion is not allowed because the object is decodable from storage")
	}
	return nil
}

// acceptPending takes a write that its transaction has not committed yet.
func (sub *subject) acceptPending(w *pendingWrite) error {
	sub.obj, sub.meta, sub.rev, sub.data = sub.empty(), kstorage.ResponseMeta{}, 0, nil
	sub.stale, sub.fresh, sub.seen = false, true, false
	if w.remove {
		return sub.acceptAbsence()
	}
	sub.rev, sub.data = w.provisional, w.data
	sub.meta = kstorage.ResponseMeta{ResourceVersion: uint64(w.provisional), TTL: remaining(w.expires)}
	return sub.s.decode(w.data, sub.obj, w.provisional)
}

func (sub *subject) acceptAbsence() error {
	if !sub.ignoreNotFound {
		return kstorage.NewKeyNotFoundError(sub.key, 0)
	}
	return runtime.SetZeroValue(sub.obj)
}

// empty makes an object to decode into. Unstructured ones keep their kind, which is
// all that tells the codec what they are.
func (sub *subject) empty() runtime.Object {
	if u, ok := sub.kind.Addr().Interface().(runtime.Unstructured); ok {
		return u.NewEmptyInstance()
	}
	return reflect.New(sub.kind.Type()).Interface().(runtime.Object)
}
