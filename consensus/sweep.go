package consensus

import (
	"context"
	"time"

	"shoal/consensus/store"
)

const (
	sweepEvery = time.Second
	sweepBatch = 256
)

// sweepExpired deletes keys whose time has come, while the replica leads its shard.
// The moment is the leader's clock; the deletion is an ordinary transaction, so
// every replica deletes at the same revision.
func (h *Host) sweepExpired(ctx context.Context, r *replica) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepEvery):
		}
		if !r.leading.Load() {
			continue
		}
		if err := h.sweepOnce(ctx, r); err != nil && ctx.Err() == nil {
			h.cfg.Logger.Debug("expired keys stay for now", "shard", r.shard, "err", err)
		}
		if err := h.forgetOld(ctx, r); err != nil && ctx.Err() == nil {
			h.cfg.Logger.Debug("old history stays for now", "shard", r.shard, "err", err)
		}
	}
}

// forgetOld makes a shard to which nobody writes any more drop what has grown too old:
// the history is trimmed when something is applied, and without this an idle
// shard would keep all of it in memory for ever. It writes one empty entry, and
// none once the history is empty.
func (h *Host) forgetOld(ctx context.Context, r *replica) error {
	view, ok := r.view()
	if !ok || view.Oldest() == 0 {
		return nil
	}
	// a little late, so that what is trimmed at all is worth the entry
	if now := h.clock.now(); now.Time().Sub(view.Oldest().Time()) < h.cfg.History.Age*5/4 {
		return nil
	}
	_, err := h.Propose(ctx, r.shard, store.Transaction{})
	return err
}

func (h *Host) sweepOnce(ctx context.Context, r *replica) error {
	view, ok := r.view()
	if !ok {
		return nil
	}
	due := view.Due(h.cfg.Now().UnixMilli(), sweepBatch)
	for len(due) > 0 {
		var tx store.Transaction
		for _, kv := range due {
			tx.Conditions = append(tx.Conditions, store.Condition{Key: kv.Key, Revision: kv.Mod})
			tx.Ops = append(tx.Ops, store.Op{Key: kv.Key, Delete: true})
		}
		res, err := h.Propose(ctx, r.shard, tx)
		if err != nil || res.OK {
			return err
		}
		// Some were renewed meanwhile: leave them out.
		renewed := map[string]bool{}
		for _, kv := range res.Failed {
			renewed[kv.Key] = true
		}
		kept := due[:0]
		for _, kv := range due {
			if !renewed[kv.Key] {
				kept = append(kept, kv)
			}
		}
		due = kept
	}
	return nil
}
