package storage

import (
	"bytes"
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus/store"
)

// write is one change of one object, on the condition that the object's revision is
// still expect (0: that there is none).
type write struct {
	key     string
	expect  store.Revision
	remove  bool
	sealed  []byte // the value to store
	data    []byte // the same before sealing; of a removal what was removed
	expires int64
}

// outcome is what became of a write.
type outcome struct {
	applied  bool
	revision store.Revision
	// current is the object that stood in the way, Mod 0 if there is none. pending is
	// set instead if it was a write of the same transaction.
	current store.KV
	pending *pendingWrite
}

// Create implements storage.Interface.
func (s *Storage) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	key, err := s.keys.prepare(key, false)
	if err != nil {
		return err
	}
	if version, err := s.versioner.ObjectResourceVersion(obj); err == nil && version != 0 {
		return kstorage.ErrResourceVersionSetOnCreate
	}
	if err := keepUID(ctx, obj); err != nil {
		return err
	}
	data, err := s.encode(obj)
	if err != nil {
		return err
	}
	sealed, err := s.seal(ctx, key, data)
	if err != nil {
		return err
	}
	done, err := s.commit(ctx, write{key: key, sealed: sealed, data: data, expires: expiry(ttl)}, out)
	if err != nil {
		return err
	}
	if !done.applied {
		return kstorage.NewKeyExistsError(key, 0)
	}
	if out == nil {
		return nil
	}
	return s.decode(data, out, done.revision)
}

// Delete implements storage.Interface. A suggested object that turns out to be old
// is read anew, and every verdict about it is taken again.
func (s *Storage) Delete(ctx context.Context, key string, out runtime.Object, preconditions *kstorage.Preconditions,
	validate kstorage.ValidateObjectFunc, suggestion runtime.Object, opts kstorage.DeleteOptions) error {
	key, err := s.keys.prepare(key, false)
	if err != nil {
		return err
	}
	subject, err := s.newSubject(key, out)
	if err != nil {
		return err
	}
	if subject.expectCorrupt = s.markCorrupt && opts.ExpectTransformOrDecodeError; subject.expectCorrupt {
		suggestion = nil
	}
	if err := subject.load(ctx, suggestion); err != nil {
		return err
	}
	for {
		err := preconditions.Check(key, subject.obj)
		if err == nil {
			err = validate(ctx, subject.obj)
		}
		if err != nil {
			if err = subject.reconsider(ctx, err); err != nil {
				return err
			}
			continue
		}
		done, err := s.commit(ctx, write{key: key, expect: subject.rev, remove: true, data: subject.data}, out)
		if err != nil {
			return err
		}
		if !done.applied {
			if err := subject.retake(ctx, done); err != nil {
				return err
			}
			continue
		}
		if subject.expectCorrupt {
			return nil
		}
		return s.decode(subject.data, out, done.revision)
	}
}

// GuaranteedUpdate implements storage.Interface. As with upstream's etcd store, an
// update that names no time to live ends the one that the object had.
func (s *Storage) GuaranteedUpdate(ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *kstorage.Preconditions, tryUpdate kstorage.UpdateFunc, suggestion runtime.Object) error {
	key, err := s.keys.prepare(key, false)
	if err != nil {
		return err
	}
	subject, err := s.newSubject(key, destination)
	if err != nil {
		return err
	}
	subject.ignoreNotFound = ignoreNotFound
	if err := subject.load(ctx, suggestion); err != nil {
		return err
	}
	for {
		var updated runtime.Object
		var ttl *uint64
		err := preconditions.Check(key, subject.obj)
		if err == nil {
			updated, ttl, err = tryUpdate(subject.obj, subject.meta)
		}
		if err != nil {
			if err = subject.reconsider(ctx, err); err != nil {
				return err
			}
			continue
		}
		data, err := s.encode(updated)
		if err != nil {
			return err
		}
		same, retry, err := subject.unchanged(ctx, data)
		switch {
		case err != nil:
			return err
		case retry:
			continue
		case same:
			return s.decode(subject.data, destination, subject.rev)
		}
		out := destination
		if subject.seen {
			out = nil
		}
		done, err := s.replace(ctx, subject, data, ttl, out)
		if err != nil {
			return err
		}
		if !done.applied {
			if err := subject.retake(ctx, done); err != nil {
				return err
			}
			continue
		}
		if out == nil {
			return nil
		}
		return s.decode(data, out, done.revision)
	}
}

// replace writes an update's result over the state it was made from.
func (s *Storage) replace(ctx context.Context, from *subject, data []byte, ttl *uint64, destination runtime.Object) (outcome, error) {
	sealed, err := s.seal(ctx, from.key, data)
	if err != nil {
		return outcome{}, err
	}
	w := write{key: from.key, expect: from.rev, sealed: sealed, data: data}
	if ttl != nil {
		w.expires = expiry(*ttl)
	}
	return s.commit(ctx, w, destination)
}

// unchanged says whether the update would store what is stored already. Only a
// state that was read, not suggested, can answer: retry asks for another round with
// the state now read.
func (sub *subject) unchanged(ctx context.Context, data []byte) (same, retry bool, err error) {
	if sub.stale || !bytes.Equal(data, sub.data) {
		return false, false, nil
	}
	if !sub.fresh {
		if err := sub.refresh(ctx); err != nil {
			return false, false, err
		}
		if !bytes.Equal(data, sub.data) {
			return false, true, nil
		}
	}
	return !sub.stale, false, nil
}

// commit applies a write at once, or adds it to the context's transaction. out is
// the object that the caller will fill with the result; a transaction corrects its
// resourceVersion when it commits.
func (s *Storage) commit(ctx context.Context, w write, out runtime.Object) (outcome, error) {
	if tx := transactionOf(ctx); tx != nil {
		return tx.collect(ctx, s, w, out)
	}
	shard, err := s.shardOf(ctx, w.key)
	if err != nil {
		return outcome{}, apiError(err)
	}
	for {
		tx, err := s.transaction(ctx, w)
		if err != nil {
			return outcome{}, apiError(err)
		}
		result, err := s.propose(ctx, shard, tx)
		if err != nil {
			return outcome{}, apiError(err)
		}
		if result.OK {
			return outcome{applied: true, revision: result.Revisions[0]}, nil
		}
		for _, kv := range result.Failed {
			if kv.Key == w.key {
				return outcome{current: kv}, nil
			}
		}
		// only the record of a namespace's shard was in the way: choose again
	}
}

// transaction is the write with its condition, and with what has to be recorded
// beside it.
func (s *Storage) transaction(ctx context.Context, w write) (store.Transaction, error) {
	tx := store.Transaction{
		Conditions: []store.Condition{{Key: w.key, Revision: w.expect}},
		Ops:        []store.Op{{Key: w.key, Value: w.sealed, Delete: w.remove, Expires: w.expires}},
	}
	if s.resource.Group != "" || s.resource.Resource != "namespaces" {
		return tx, nil
	}
	_, namespace := s.keys.split(w.key)
	switch {
	case w.remove && s.shards.Forget != nil:
		op, nothing, err := s.shards.Forget(ctx, namespace)
		if err != nil {
			return tx, err
		}
		if !nothing {
			tx.Ops = append(tx.Ops, op)
		}
	case !w.remove && w.expect == 0 && s.shards.Choose != nil:
		condition, op, err := s.shards.Choose(ctx, namespace)
		if err != nil {
			return tx, err
		}
		tx.Conditions = append(tx.Conditions, condition)
		tx.Ops = append(tx.Ops, op)
	}
	return tx, nil
}
