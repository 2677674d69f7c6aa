package shardmap

import (
	"encoding/binary"
	"hash/fnv"
	"strconv"
	"strings"
)

// Map says which shard every namespace belongs to.
type Map struct {
	// DataShards are the numbers of the data shards.
	DataShards []uint64
	// Recorded are the namespaces with a record. Records win: a namespace stays
	// where it is when shards are added.
	Recorded map[string]uint64
}

// ShardFor is the namespace's shard: the recorded one, else by rendezvous hash
// (Thaler and Ravishankar, 1998) over the data shards. "", the cluster scope, is
// the meta shard.
func (m Map) ShardFor(namespace string) uint64 {
	if namespace == "" || len(m.DataShards) == 0 {
		return 0
	}
	if shard, ok := m.Recorded[namespace]; ok {
		return shard
	}
	var best, bestWeight uint64
	for i, shard := range m.DataShards {
		if w := weight(namespace, shard); i == 0 || w > bestWeight || (w == bestWeight && shard < best) {
			best, bestWeight = shard, w
		}
	}
	return best
}

func weight(namespace string, shard uint64) uint64 {
	h := fnv.New64a()
	h.Write([]byte(namespace))                         //nolint:errcheck // a hash never fails
	h.Write(binary.BigEndian.AppendUint64(nil, shard)) //nolint:errcheck // a hash never fails
	// FNV's low bits differ little between neighbouring shards: mix them once
	// (the finaliser of MurmurHash3).
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// NamespaceKey is where a namespace's shard is recorded in the meta shard.
func NamespaceKey(namespace string) string { return NamespacePrefix + namespace }

// EncodeNamespace is the record's value.
func EncodeNamespace(shard uint64) []byte { return strconv.AppendUint(nil, shard, 10) }

// DecodeNamespace reads a record; ok is false if it is none.
func DecodeNamespace(key string, value []byte) (namespace string, shard uint64, ok bool) {
	namespace, ok = strings.CutPrefix(key, NamespacePrefix)
	shard, err := strconv.ParseUint(string(value), 10, 64)
	return namespace, shard, ok && namespace != "" && err == nil
}
