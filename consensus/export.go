package consensus

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// exportPage is how many keys Export reads at a time from another peer.
const exportPage = 100

// Snapshot is a moment of the whole store: the state of every shard after each change
// at or below the revision, and after no other. No write that was acknowledged before
// the call is missing. It can be read for as long as the shards' histories reach back
// to it.
//
// Errors: ErrNoQuorum if any shard has none; those of Propose.
func (h *Host) Snapshot(ctx context.Context) (shards []uint64, at store.Revision, err error) {
	list, err := h.List(ctx, MetaShard, ListOptions{Prefix: shardmap.Prefix}, Linearizable)
	if err != nil {
		return nil, 0, err
	}
	for _, kv := range list.KVs {
		a, err := shardmap.Decode(kv.Key, kv.Value)
		if err != nil {
			return nil, 0, err
		}
		shards = append(shards, a.Shard)
	}
	reached := make([]store.Revision, len(shards))
	group, gctx := errgroup.WithContext(ctx)
	for i, shard := range shards {
		group.Go(func() (err error) {
			_, _, reached[i], err = h.Get(gctx, shard, "", Linearizable)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, 0, err
	}
	for _, rev := range reached {
		at = max(at, rev)
	}
	group, gctx = errgroup.WithContext(ctx)
	for _, shard := range shards {
		group.Go(func() error {
			_, err := h.Close(gctx, shard, at)
			return err
		})
	}
	return shards, at, group.Wait()
}

// Export calls fn with all keys of a shard as they were at the revision, in order and
// in pages, until fn fails. The local replica is read where there is one. Errors: ErrCompacted
// if the history does not reach back to the revision any more; fn's; those of List.
func (h *Host) Export(ctx context.Context, shard uint64, at store.Revision, fn func([]store.KV) error) error {
	if view, here := h.Local(shard); here && view.Revision() >= at {
		return exportView(view, at, fn)
	}
	for start := ""; ; {
		page, err := h.List(ctx, shard, ListOptions{Start: start, Limit: exportPage, At: at}, Linearizable)
		if err != nil {
			return fmt.Errorf("export shard %d: %w", shard, err)
		}
		if len(page.KVs) > 0 {
			if err := fn(page.KVs); err != nil {
				return err
			}
			start = page.KVs[len(page.KVs)-1].Key + "\x00"
		}
		if !page.More {
			return nil
		}
	}
}

func exportView(view store.View, at store.Revision, fn func([]store.KV) error) error {
	view, err := view.At(at, store.Range{})
	if err != nil {
		return fmt.Errorf("export shard %d: %w", view.Shard(), err)
	}
	page := make([]store.KV, 0, exportPage)
	view.Walk(store.Range{}, func(kv *store.KV) bool {
		if page = append(page, *kv); len(page) == exportPage {
			err = fn(page)
			page = page[:0]
		}
		return err == nil
	})
	if err == nil && len(page) > 0 {
		err = fn(page)
	}
	return err
}
