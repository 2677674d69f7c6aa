package storage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

const (
	// forgetAfter is how long the record of a deleted namespace's shard stays. A
	// namespace made again under the same name within that time goes to the same
	// shard, so that a peer which still knows the old record is not wrong.
	forgetAfter = time.Hour
	// rememberFor is how long a peer without a replica of the meta shard trusts a
	// record that it has asked for. It must be well below forgetAfter.
	rememberFor = time.Minute
	// settleFor is how long a data shard that was added gets no namespaces: until then
	// every peer has learned of it, and no watch over all namespaces is without it when
	// it gets its first event.
	settleFor = 10 * time.Second
)

// Directory finds the shards of namespaces in the meta shard's records, and writes
// the records of new ones.
type Directory struct {
	host *consensus.Host

	mu    sync.Mutex
	known map[string]knownShard
}

type knownShard struct {
	shard uint64
	until time.Time
}

// NewDirectory makes the directory of the host's cluster.
func NewDirectory(host *consensus.Host) *Directory {
	return &Directory{host: host, known: map[string]knownShard{}}
}

// Shards are the directory's answers in the form that Config takes.
func (d *Directory) Shards() Shards {
	return Shards{Locate: d.Locate, All: d.All, Choose: d.Choose, Forget: d.Forget}
}

// Locate is the shard of a namespace: the recorded one, or for a namespace that
// does not exist the one that its name hashes to. A record costs no round trip on a
// peer that holds a replica of the meta shard.
func (d *Directory) Locate(ctx context.Context, namespace string) (uint64, error) {
	if view, here := d.host.Local(consensus.MetaShard); here {
		if kv, found := view.Get(shardmap.NamespaceKey(namespace)); found {
			return decodeRecord(kv)
		}
	} else if shard, ok := d.recall(namespace); ok {
		return shard, nil
	}
	kv, found, _, err := d.host.Get(ctx, consensus.MetaShard, shardmap.NamespaceKey(namespace), consensus.Linearizable)
	if err != nil {
		return 0, fmt.Errorf("find the shard of namespace %s: %w", namespace, err)
	}
	if found {
		shard, err := decodeRecord(kv)
		if err == nil {
			d.remember(namespace, shard)
		}
		return shard, err
	}
	shards, err := d.dataShards(ctx)
	return shardmap.Map{DataShards: shards}.ShardFor(namespace), err
}

// All lists the data shards. The API lets no object of a namespaced resource be
// without a namespace, so that none of them is in the meta shard.
func (d *Directory) All(ctx context.Context) ([]uint64, error) {
	return d.dataShards(ctx)
}

// Choose gives a new namespace the data shard with the fewest namespaces. One that
// is still recorded gets its old shard back.
func (d *Directory) Choose(ctx context.Context, namespace string) (store.Condition, store.Op, error) {
	key := shardmap.NamespaceKey(namespace)
	records, err := d.list(ctx, shardmap.NamespacePrefix)
	if err != nil {
		return store.Condition{}, store.Op{}, fmt.Errorf("choose the shard of namespace %s: %w", namespace, err)
	}
	load := map[uint64]int{}
	for _, kv := range records {
		_, shard, ok := shardmap.DecodeNamespace(kv.Key, kv.Value)
		if !ok {
			continue
		}
		if kv.Key == key {
			return store.Condition{Key: key, Revision: kv.Mod}, store.Op{Key: key, Value: kv.Value}, nil
		}
		load[shard]++
	}
	shards, err := d.settledShards(ctx)
	if err != nil {
		return store.Condition{}, store.Op{}, err
	}
	shard := shardmap.Map{DataShards: leastLoaded(shards, load)}.ShardFor(namespace)
	return store.Condition{Key: key}, store.Op{Key: key, Value: shardmap.EncodeNamespace(shard)}, nil
}

// Forget lets the record of a deleted namespace expire.
func (d *Directory) Forget(ctx context.Context, namespace string) (op store.Op, nothing bool, err error) {
	key := shardmap.NamespaceKey(namespace)
	kv, found, _, err := d.host.Get(ctx, consensus.MetaShard, key, consensus.Linearizable)
	if err != nil || !found {
		return store.Op{}, true, err
	}
	return store.Op{Key: key, Value: kv.Value, Expires: time.Now().Add(forgetAfter).UnixMilli()}, false, nil
}

// leastLoaded are the shards that hold the fewest namespaces.
func leastLoaded(shards []uint64, load map[uint64]int) []uint64 {
	var least []uint64
	for _, shard := range shards {
		switch {
		case len(least) == 0 || load[shard] < load[least[0]]:
			least = []uint64{shard}
		case load[shard] == load[least[0]]:
			least = append(least, shard)
		}
	}
	return least
}

func (d *Directory) dataShards(ctx context.Context) ([]uint64, error) {
	made, err := d.shardsMade(ctx)
	return slices.Sorted(maps.Keys(made)), err
}

// settledShards are the data shards that may get namespaces: those of the founding, and
// those that were added long enough ago.
func (d *Directory) settledShards(ctx context.Context) ([]uint64, error) {
	made, err := d.shardsMade(ctx)
	if err != nil {
		return nil, err
	}
	first, now := slices.Min(slices.Collect(maps.Values(made))), d.host.Now()
	for shard, at := range made {
		if at.Time().Sub(first.Time()) > 100*time.Millisecond && now.Time().Sub(at.Time()) < settleFor {
			delete(made, shard)
		}
	}
	return slices.Sorted(maps.Keys(made)), nil
}

// shardsMade is when each data shard was recorded.
func (d *Directory) shardsMade(ctx context.Context) (map[uint64]store.Revision, error) {
	assignments, err := d.list(ctx, shardmap.Prefix)
	if err != nil {
		return nil, fmt.Errorf("list the shards: %w", err)
	}
	made := map[uint64]store.Revision{}
	for _, kv := range assignments {
		shard, err := strconv.ParseUint(strings.TrimPrefix(kv.Key, shardmap.Prefix), 10, 64)
		if err == nil && shard != consensus.MetaShard {
			made[shard] = kv.Create
		}
	}
	if len(made) == 0 {
		return nil, fmt.Errorf("%w: the meta shard records no data shards", consensus.ErrUnknownShard)
	}
	return made, nil
}

// list reads the meta shard's keys with a prefix, from the local replica if there
// is one.
func (d *Directory) list(ctx context.Context, prefix string) ([]store.KV, error) {
	if view, here := d.host.Local(consensus.MetaShard); here {
		var kvs []store.KV
		view.Ascend(prefix, func(kv store.KV) bool {
			kvs = append(kvs, kv)
			return true
		})
		return kvs, nil
	}
	result, err := d.host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: prefix}, consensus.Linearizable)
	return result.KVs, err
}

func (d *Directory) recall(namespace string) (uint64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.known[namespace]
	if ok && time.Now().After(known.until) {
		delete(d.known, namespace)
		return 0, false
	}
	return known.shard, ok
}

func (d *Directory) remember(namespace string, shard uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[namespace] = knownShard{shard: shard, until: time.Now().Add(rememberFor)}
}

func decodeRecord(kv store.KV) (uint64, error) {
	_, shard, ok := shardmap.DecodeNamespace(kv.Key, kv.Value)
	if !ok {
		return 0, fmt.Errorf("unreadable record %s in the meta shard", kv.Key)
	}
	return shard, nil
}
