package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

// futureWait is how long a read waits for a revision that this peer has not seen
// yet. A client that switches peers may be ahead of its new one by as much as
// clocks differ; upstream's watch cache waits as long.
const futureWait = 3 * time.Second

// Get implements storage.Interface.
func (s *Storage) Get(ctx context.Context, key string, opts kstorage.GetOptions, out runtime.Object) error {
	key, err := s.keys.prepare(key, false)
	if err != nil {
		return err
	}
	if tx := transactionOf(ctx); tx != nil {
		return s.getPending(ctx, tx, key, opts, out)
	}
	minimum, err := s.minimum(opts.ResourceVersion)
	if err != nil {
		return err
	}
	shard, err := s.shardOf(ctx, key)
	if err != nil {
		return apiError(err)
	}
	kv, _, err := s.read(ctx, shard, key, minimum, opts.ResourceVersion == "")
	if err != nil {
		return apiError(err)
	}
	return s.deliver(ctx, key, kv, opts.IgnoreNotFound, out)
}

func (s *Storage) getPending(ctx context.Context, tx *Transaction, key string, opts kstorage.GetOptions, out runtime.Object) error {
	kv, pending, err := tx.state(ctx, s, key)
	switch {
	case err != nil:
		return apiError(err)
	case pending == nil:
		return s.deliver(ctx, key, kv, opts.IgnoreNotFound, out)
	case pending.remove:
		return s.deliver(ctx, key, store.KV{}, opts.IgnoreNotFound, out)
	default:
		return s.decode(pending.data, out, pending.provisional)
	}
}

// deliver decodes what was read into out.
func (s *Storage) deliver(ctx context.Context, key string, kv store.KV, ignoreNotFound bool, out runtime.Object) error {
	if kv.Mod == 0 {
		if ignoreNotFound {
			return runtime.SetZeroValue(out)
		}
		return kstorage.NewKeyNotFoundError(key, 0)
	}
	data, _, err := s.open(ctx, key, kv.Value)
	if err != nil {
		return markUnreadable(key, kstorage.NewInternalError(err))
	}
	return markUnreadable(key, s.decode(data, out, kv.Mod))
}

// read reads one key at a revision not below minimum. newest asks for a
// linearizable read; otherwise a local replica that has reached the minimum answers.
func (s *Storage) read(ctx context.Context, shard uint64, key string, minimum store.Revision, newest bool) (store.KV, store.Revision, error) {
	level := consensus.Linearizable
	if !newest && (minimum == 0 || s.reached(shard, minimum)) {
		level = consensus.Local
	}
	kv, at, err := s.get(ctx, shard, key, level)
	if err != nil || merge.ClosedThrough(at) >= minimum {
		return kv, max(at, minimum), err
	}
	if err := s.reach(ctx, shard, minimum); err != nil {
		return store.KV{}, 0, err
	}
	kv, at, err = s.get(ctx, shard, key, consensus.Linearizable)
	return kv, max(at, minimum), err
}

// reached says that a local replica of the shard shows everything up to rev.
func (s *Storage) reached(shard uint64, rev store.Revision) bool {
	view, here := s.host.Local(shard)
	return here && merge.ClosedThrough(view.Revision()) >= rev
}

// reach makes the shard pass rev, so that it can assign nothing at or below it any
// more. A revision that nobody can have assigned yet is waited for briefly and then
// refused as too large.
func (s *Storage) reach(ctx context.Context, shard uint64, rev store.Revision) error {
	if s.reached(shard, rev) {
		return nil
	}
	deadline := time.Now().Add(futureWait)
	for {
		now := s.host.Now()
		if rev.Time().Sub(now.Time()) > futureWait {
			return tooLarge(rev, now)
		}
		err := s.close(ctx, shard, merge.CloseTarget(shard, rev))
		if !errors.Is(err, consensus.ErrFuture) {
			return err
		}
		if time.Now().After(deadline) {
			return tooLarge(rev, now)
		}
		if err := pause(ctx, futureWait/100); err != nil {
			return err
		}
	}
}

func tooLarge(rev, now store.Revision) error {
	return kstorage.NewTooLargeResourceVersionError(uint64(rev), uint64(now), 1)
}

// minimum reads a resourceVersion that bounds a result's age from below: 0 for none.
func (s *Storage) minimum(resourceVersion string) (store.Revision, error) {
	version, err := s.versioner.ParseResourceVersion(resourceVersion)
	if err == nil && int64(version) < 0 {
		err = errors.New("out of range")
	}
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", err))
	}
	return store.Revision(version), nil
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
