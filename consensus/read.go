package consensus

import (
	"context"
	"errors"
	"time"

	"shoal/consensus/bugs"
	"shoal/consensus/store"
)

// Get reads one key. at is the shard's revision that the answer shows. Errors:
// ErrNoQuorum (linearizable only), ErrUnknownShard, ErrClosed.
func (h *Host) Get(ctx context.Context, shard uint64, key string, level ReadLevel) (kv store.KV, found bool, at store.Revision, err error) {
	err = h.reachAt(level)(ctx, shard,
		func(ctx context.Context, r *replica) error {
			view, err := h.viewHere(ctx, r, level)
			if err == nil {
				at = view.Revision()
				kv, found = view.Get(key)
			}
			return err
		},
		func(ctx context.Context, peer string) (err error) {
			kv, found, at, err = h.getAt(ctx, peer, shard, key, level)
			return err
		})
	h.clock.observe(at)
	return kv, found, at, err
}

// List reads a range of keys at one revision. Errors: ErrCompacted and ErrFuture
// for At; those of Get.
func (h *Host) List(ctx context.Context, shard uint64, opts ListOptions, level ReadLevel) (res ListResult, err error) {
	err = h.reachAt(level)(ctx, shard,
		func(ctx context.Context, r *replica) (err error) {
			res, err = h.listHere(ctx, r, opts, level)
			return err
		},
		func(ctx context.Context, peer string) (err error) {
			res, err = h.listAt(ctx, peer, shard, opts, level)
			return err
		})
	h.clock.observe(res.Revision)
	return res, err
}

// reachAt is how a read at the level is carried out.
func (h *Host) reachAt(level ReadLevel) reacher {
	if level == Local {
		return h.reach
	}
	return h.reachQuorum
}

func (h *Host) listHere(ctx context.Context, r *replica, opts ListOptions, level ReadLevel) (ListResult, error) {
	// A past revision does not change any more: no quorum has to be asked.
	if view, ok := r.view(); ok && opts.At != 0 && opts.At <= view.Revision() {
		return listView(view, opts)
	}
	view, err := h.viewHere(ctx, r, level)
	if err != nil {
		return ListResult{}, err
	}
	return listView(view, opts)
}

// viewHere gives the replica's View at the level, in one attempt.
func (h *Host) viewHere(ctx context.Context, r *replica, level ReadLevel) (store.View, error) {
	if level == Local || bugs.On(bugs.StaleReads) {
		if view, ok := r.view(); ok {
			return view, nil
		}
		select {
		case <-ctx.Done():
		case <-h.changed.wait():
		case <-time.After(readAttempt / 4):
		}
		return store.View{}, &tryAgain{cause: errNotReady}
	}
	view, err := h.readIndex(ctx, r)
	if err != nil {
		return store.View{}, &tryAgain{cause: err}
	}
	return view, nil
}

func listView(view store.View, opts ListOptions) (ListResult, error) {
	whole := view.Whole(opts.At)
	r := store.Range{Prefix: opts.Prefix, Start: opts.Start, End: opts.End, Reverse: opts.Reverse}
	view, err := view.At(opts.At, r)
	if err != nil {
		return ListResult{}, err
	}
	res := ListResult{Revision: view.Revision(), Count: int64(view.Count(r))}
	res.Whole = max(res.Revision, whole)
	if opts.CountOnly || res.Count == 0 {
		return res, nil
	}
	wanted := int(res.Count)
	if opts.Limit > 0 && opts.Limit < wanted {
		wanted, res.More = opts.Limit, true
	}
	res.KVs = make([]store.KV, 0, wanted)
	view.Walk(r, func(kv *store.KV) bool {
		res.KVs = append(res.KVs, *kv)
		return len(res.KVs) < wanted
	})
	return res, nil
}

// Close makes the shard's closed timestamp, which is its last applied revision, at
// least upTo: afterwards no event at or below the returned revision can appear. It
// is a linearizable barrier for local reads through this host. Concurrent calls
// share one log entry, and a shard that is there already gets none.
//
// Errors: ErrFuture if upTo is ahead of the clock; those of Propose.
func (h *Host) Close(ctx context.Context, shard uint64, upTo store.Revision) (store.Revision, error) {
	if upTo > h.clock.now() {
		if err := h.clock.admit(ctx, upTo); err != nil {
			return 0, shardError(shard, ErrFuture, err)
		}
	}
	return h.closers.close(ctx, shard, upTo, h.closeNow)
}

func (h *Host) closeNow(ctx context.Context, shard uint64, upTo store.Revision) (store.Revision, error) {
	// Most often the shard is there already: somebody else has closed it, or the caller has no replica and cannot know. An entry that says
	// nothing would take it further still, and all the others would have to follow.
	_, _, at, err := h.Get(ctx, shard, "", Linearizable)
	if err != nil || at >= upTo {
		return at, err
	}
	// Up to what exists somewhere else already, a clock that is off does no harm, and
	// reads of all shards go on.
	if err := h.clock.fit(ctx); err != nil && int64(upTo) > h.clock.seen.Load() {
		return 0, shardError(shard, ErrClockSkew, err)
	}
	res, _, err := h.propose(ctx, shard, store.AppendTransaction(nil, store.Transaction{Stamp: upTo}))
	var kind *ShardError
	if errors.As(err, &kind) && kind.Kind == ErrUnknownOutcome {
		// An empty transaction that was lost has no outcome to be unsure of.
		err = shardError(shard, ErrNoQuorum, kind.Cause)
	}
	if err != nil {
		return 0, err
	}
	return res.Revision, h.awaitLocal(ctx, shard, res.Revision)
}

// awaitLocal waits until the local replica, if there is one and it answers, has
// applied the revision: the barrier may have gone through another peer.
func (h *Host) awaitLocal(ctx context.Context, shard uint64, rev store.Revision) error {
	for attempt := 0; ; attempt++ {
		r, here := h.replica(shard)
		if !here {
			return nil
		}
		if view, ready := r.view(); !ready || view.Revision() >= rev {
			return nil
		}
		changed := h.changed.wait()
		var view store.View
		err := h.noteAnswer(ctx, r, func(ctx context.Context, r *replica) (err error) {
			view, err = h.viewHere(ctx, r, Linearizable)
			return err
		})
		switch {
		case h.ctx.Err() != nil:
			return ErrClosed
		case ctx.Err() != nil:
			return shardError(shard, ErrNoQuorum, err)
		case err == nil && view.Revision() >= rev, r.detour.set():
			return nil
		}
		// A replica that knows no leader is refused at once, and would be again and again; one that leads by a lease answers at once, also
		// where the revision was lost, which must not be.
		select {
		case <-ctx.Done():
		case <-h.ctx.Done():
		case <-changed:
		case <-time.After(backoff(attempt)):
		}
	}
}
