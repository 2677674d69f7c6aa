package storage

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

// staleAfter is how long a read that may be stale waits for a fresh one, before it
// makes do with what local replicas show.
const staleAfter = 500 * time.Millisecond

// snapshot is a set of shards at one revision: the state after every change at or
// below rev, and after no other.
type snapshot struct {
	shards []uint64
	rev    store.Revision
	// loose says that rev could not be agreed on: each shard shows what a replica
	// has, and rev is the lowest of their revisions.
	loose bool
}

// confirmed is the highest revision that the shards confirm to have reached, with
// all of them closed through it. It is at or above every write that was
// acknowledged before the call.
func (s *Storage) confirmed(ctx context.Context, shards []uint64) (store.Revision, error) {
	reached := make([]store.Revision, len(shards))
	group, gctx := errgroup.WithContext(ctx)
	for i, shard := range shards {
		group.Go(func() (err error) {
			reached[i], err = s.barrier(gctx, shard)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	highest := merge.ClosedThrough(store.Tick) // 0, of shards that were never written to, would ask for the newest of each
	for _, rev := range reached {
		highest = max(highest, rev)
	}
	return highest, s.closeAll(ctx, shards, highest)
}

// barrier is the shard's revision, at or above every write to it that was
// acknowledged before the call. It writes nothing.
func (s *Storage) barrier(ctx context.Context, shard uint64) (store.Revision, error) {
	_, at, err := s.get(ctx, shard, s.keys.root(), consensus.Linearizable)
	return at, err
}

// closeAll makes all shards pass rev.
func (s *Storage) closeAll(ctx context.Context, shards []uint64, rev store.Revision) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, shard := range shards {
		if !s.reached(shard, rev) {
			group.Go(func() error { return s.reach(ctx, shard, rev) })
		}
	}
	return group.Wait()
}

// cuts says that a revision, which the shards have passed, lies among the changes of
// one transaction of any of them, or that this cannot be found out. Shards that are not
// here are asked all at once; a copy that has passed the revision answers without asking
// its group, because what is past does not change any more.
func (s *Storage) cuts(ctx context.Context, shards []uint64, rev store.Revision) bool {
	var elsewhere []uint64
	for _, shard := range shards {
		view, here := s.host.Local(shard)
		switch {
		case !here || merge.ClosedThrough(view.Revision()) < rev:
			elsewhere = append(elsewhere, shard)
		case view.Whole(rev) > rev:
			return true
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, shard := range elsewhere {
		group.Go(func() error {
			at := merge.OnShard(shard, rev)
			result, err := s.list(ctx, shard, consensus.ListOptions{Prefix: s.keys.root(), CountOnly: true, At: at}, consensus.Linearizable)
			if err == nil && result.Whole > at {
				err = errCut
			}
			return err
		})
	}
	return group.Wait() != nil
}

// errCut ends the asking of cuts.
var errCut = errors.New("the revision lies inside of a transaction")

// wanted is what a list's options ask for.
type wanted struct {
	exact, minimum store.Revision
	// newest asks for a result that no acknowledged write is missing from.
	newest bool
}

// wants reads the options, which ValidateListOptions has found to be consistent;
// withRev is its verdict on the exact revision.
func (s *Storage) wants(opts kstorage.ListOptions, withRev int64) (wanted, error) {
	minimum, err := s.minimum(opts.ResourceVersion)
	if err != nil {
		return wanted{}, err
	}
	if withRev > 0 {
		return wanted{exact: store.Revision(withRev)}, nil
	}
	newest := opts.ResourceVersion == "" || opts.Predicate.Continue != "" || opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact
	return wanted{minimum: minimum, newest: newest}, nil
}

// on is what is wanted of these shards. A single one has to reach a revision of its own that is not below the minimum, and not only to be
// closed through it: the result names at least the minimum, and the next one, which names what the shard has reached, must not name less.
func (w wanted) on(shards ...uint64) wanted {
	if len(shards) == 1 {
		w.minimum = merge.AtLeast(shards[0], w.minimum)
	}
	return w
}

// pin finds the revision at which the shards can answer.
func (s *Storage) pin(ctx context.Context, shards []uint64, want wanted) (snapshot, error) {
	snap := snapshot{shards: shards}
	var err error
	switch {
	case len(shards) == 1:
		snap.rev, err = s.pinOne(ctx, shards[0], want)
	case want.exact != 0:
		snap.rev, err = s.atLeast(ctx, shards, want.exact)
		snap.rev = want.exact
	case want.minimum != 0:
		snap.rev, err = s.atLeast(ctx, shards, want.minimum)
	case want.newest:
		snap.rev, err = s.confirmed(ctx, shards)
	default:
		return s.pinStale(ctx, shards)
	}
	return snap, err
}

// pinOne is pin for one shard. A result of 0 leaves the choice to the first read.
func (s *Storage) pinOne(ctx context.Context, shard uint64, want wanted) (store.Revision, error) {
	if want.exact != 0 {
		return want.exact, s.reach(ctx, shard, want.exact)
	}
	if want.minimum != 0 {
		if err := s.reach(ctx, shard, want.minimum); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// atLeast is confirmed, at or above rev. Every revision that was ever handed out
// lies at or below what some shard has reached, so one that lies above all of them
// is waited for briefly and then refused as too large.
func (s *Storage) atLeast(ctx context.Context, shards []uint64, rev store.Revision) (store.Revision, error) {
	deadline := time.Now().Add(futureWait)
	for {
		highest, err := s.confirmed(ctx, shards)
		if err != nil || highest >= rev {
			return highest, err
		}
		if merge.ClosedThrough(highest) >= rev {
			return rev, nil
		}
		if now := s.host.Now(); rev.Time().Sub(now.Time()) > futureWait || time.Now().After(deadline) {
			return 0, tooLarge(rev, highest)
		}
		if err := pause(ctx, futureWait/30); err != nil {
			return 0, err
		}
	}
}

// pinStale answers reads that may be stale. A fresh snapshot costs little, and can
// be watched from without going back in time, so it is tried first; what local
// replicas show is the answer while some shard has no quorum.
func (s *Storage) pinStale(ctx context.Context, shards []uint64) (snapshot, error) {
	fresh, cancel := context.WithTimeout(ctx, staleAfter)
	defer cancel()
	rev, err := s.confirmed(fresh, shards)
	if err == nil {
		return snapshot{shards: shards, rev: rev}, nil
	}
	if ctx.Err() != nil {
		return snapshot{}, ctx.Err()
	}
	lowest := s.host.Now()
	for _, shard := range shards {
		result, err := s.list(ctx, shard, consensus.ListOptions{Prefix: s.keys.root(), CountOnly: true}, consensus.Local)
		if err != nil {
			return snapshot{}, errors.Join(err, fresh.Err())
		}
		lowest = min(lowest, result.Revision)
	}
	return snapshot{shards: shards, rev: lowest, loose: true}, nil
}
