package storage

import (
	"context"
	"errors"

	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/store"
)

// sampleSize is how many objects of a shard without a local replica are looked at
// to estimate their size.
const sampleSize = 100

// Stats implements storage.Interface. The count may be a little stale. The average
// size is that of the sealed values on this peer's replicas, and 0 unless
// EnableResourceSizeEstimation was called.
func (s *Storage) Stats(ctx context.Context) (kstorage.Stats, error) {
	shards, err := s.shardsOf(ctx, s.keys.root())
	if err != nil {
		return kstorage.Stats{}, apiError(err)
	}
	var stats kstorage.Stats
	var size, sized int64
	for _, shard := range shards {
		count, bytes, sample, err := s.measure(ctx, shard)
		if err != nil {
			return kstorage.Stats{}, apiError(err)
		}
		stats.ObjectCount += count
		size += bytes
		sized += sample
	}
	if sized > 0 && s.estimateSize.Load() {
		stats.EstimatedAverageObjectSizeBytes = size / sized
	}
	return stats, nil
}

// measure counts a shard's objects and sums up the sizes of a sample of them.
func (s *Storage) measure(ctx context.Context, shard uint64) (count, bytes, sample int64, err error) {
	if view, here := s.host.Local(shard); here {
		view.Ascend(s.keys.root(), func(kv store.KV) bool {
			count++
			bytes += int64(len(kv.Value))
			return true
		})
		return count, bytes, count, nil
	}
	options := consensus.ListOptions{Prefix: s.keys.root(), CountOnly: !s.estimateSize.Load(), Limit: sampleSize}
	result, err := s.list(ctx, shard, options, consensus.Local)
	for _, kv := range result.KVs {
		bytes += int64(len(kv.Value))
	}
	return result.Count, bytes, int64(len(result.KVs)), err
}

// EnableResourceSizeEstimation implements storage.Interface. The replicas are at
// hand, so sizes are measured when asked for and keys need not be supplied.
func (s *Storage) EnableResourceSizeEstimation(keys kstorage.KeysFunc) error {
	if keys == nil {
		return errors.New("KeysFunc cannot be nil")
	}
	if s.estimateSize.Swap(true) {
		return errors.New("resource size estimation is already enabled")
	}
	return nil
}

// GetCurrentResourceVersion implements storage.Interface: a revision at or above
// every acknowledged write to any shard that holds the resource.
func (s *Storage) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	shards, err := s.shardsOf(ctx, s.keys.root())
	if err != nil {
		return 0, apiError(err)
	}
	rev, err := s.confirmed(ctx, shards)
	if err == nil && rev == 0 {
		err = errors.New("the current resource version must be greater than 0")
	}
	return uint64(rev), apiError(err)
}

// CompactRevision implements storage.Interface: the highest revision below which a
// local replica can no longer answer, 0 if all of them remember everything.
func (s *Storage) CompactRevision() int64 {
	var floor store.Revision
	for _, status := range s.host.Status() {
		if view, here := s.host.Local(status.Shard); here {
			floor = max(floor, view.Floor())
		}
	}
	return int64(floor)
}
