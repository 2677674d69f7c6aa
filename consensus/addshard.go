package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// foundingPrefix is where a number is reserved for a data shard that is being made:
// foundingPrefix + number → who makes it. Only that folder may found it, so two
// groups can never come to have one number.
const foundingPrefix = "/shoal/founding/"

// founder is the folder that makes a shard.
type founder struct {
	Peer string `json:"peer"`
	Disk string `json:"disk"`
}

// AddShard makes one more data shard, with this host's replica as its only voter,
// and returns its number once it takes writes and is recorded; growing it to more
// replicas is up to whoever writes assignments. Interrupted, it is finished by the
// next call on this host; a number whose maker is gone for good stays unused.
//
// Errors: those of Propose; no number is left above store.MaxShard shards.
func (h *Host) AddShard(ctx context.Context) (uint64, error) {
	shard, reserved, err := h.reserveShard(ctx)
	if err != nil {
		return 0, fmt.Errorf("add a shard: %w", err)
	}
	r := diskReplica{Shard: shard, Replica: 1}
	if err := h.disk.put(r); err != nil {
		return 0, err
	}
	if err := h.startReplica(r); err != nil {
		return 0, err
	}
	// As at a founding: a copy that has caught up is then told from an empty one.
	if _, err := h.Propose(ctx, shard, store.Transaction{}); err != nil {
		return 0, fmt.Errorf("add shard %d: %w", shard, err)
	}
	a := shardmap.Found(shard, h.cfg.PeerID, h.disk.identity())
	res, err := h.Propose(ctx, MetaShard, store.Transaction{
		Conditions: []store.Condition{{Key: reserved.key, Revision: reserved.mod}, {Key: shardmap.Key(shard)}},
		Ops:        []store.Op{{Key: reserved.key, Delete: true}, {Key: shardmap.Key(shard), Value: a.Encode()}},
	})
	if err != nil {
		return 0, fmt.Errorf("record shard %d: %w", shard, err)
	}
	if !res.OK {
		return 0, fmt.Errorf("record shard %d: its reservation was changed by somebody else", shard)
	}
	h.routes.assign(a)
	h.changed.broadcast()
	return shard, nil
}

// reserveShard finds the number that this folder has reserved, or reserves the next.
func (h *Host) reserveShard(ctx context.Context) (uint64, conditional, error) {
	mine, err := json.Marshal(founder{Peer: h.cfg.PeerID, Disk: h.disk.identity()})
	if err != nil {
		return 0, conditional{}, err
	}
	for {
		next := uint64(1)
		for _, prefix := range []string{shardmap.Prefix, foundingPrefix} {
			list, err := h.List(ctx, MetaShard, ListOptions{Prefix: prefix}, Linearizable)
			if err != nil {
				return 0, conditional{}, err
			}
			for _, kv := range list.KVs {
				var shard uint64
				if _, err := fmt.Sscanf(kv.Key[len(prefix):], "%d", &shard); err != nil {
					return 0, conditional{}, fmt.Errorf("unreadable record %s in the meta shard", kv.Key)
				}
				if prefix == foundingPrefix && string(kv.Value) == string(mine) {
					return shard, conditional{key: kv.Key, mod: kv.Mod}, nil
				}
				next = max(next, shard+1)
			}
		}
		if next > store.MaxShard {
			return 0, conditional{}, fmt.Errorf("a cluster has at most %d data shards", store.MaxShard)
		}
		key := fmt.Sprintf("%s%d", foundingPrefix, next)
		res, err := h.Propose(ctx, MetaShard, conditional{key: key}.replace(mine))
		if err != nil {
			return 0, conditional{}, err
		}
		if res.OK {
			return next, conditional{key: key, mod: res.Revisions[0]}, nil
		}
		if ctx.Err() != nil {
			return 0, conditional{}, errors.Join(errors.New("others are adding shards too"), ctx.Err())
		}
	}
}

// ShardsChanged is closed when this host has learned of a shard that it did not know.
func (h *Host) ShardsChanged() <-chan struct{} { return h.routes.grown.wait() }
