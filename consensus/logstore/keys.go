package logstore

import "encoding/binary"

// The kinds of records, as dragonboat's layout numbers them. A key is its kind twice, two zero bytes, shard, replica and for entries and
// snapshots an index, all big endian, so that a replica's entries lie in order.
const (
	kindEntry     = 0x1
	kindState     = 0x2
	kindMaxIndex  = 0x3
	kindSnapshot  = 0x5
	kindBootstrap = 0x6
	kindBatch     = 0x7
)

// node names one replica of one shard.
type node struct{ shard, replica uint64 }

func (n node) key(kind byte) []byte {
	b := []byte{kind, kind, 0, 0}
	b = binary.BigEndian.AppendUint64(b, n.shard)
	return binary.BigEndian.AppendUint64(b, n.replica)
}

func (n node) indexed(kind byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(n.key(kind), index)
}

// appendIndexed is indexed without an allocation, for the way of every write.
func (n node) appendIndexed(b []byte, kind byte, index uint64) []byte {
	b = append(b, kind, kind, 0, 0)
	b = binary.BigEndian.AppendUint64(b, n.shard)
	b = binary.BigEndian.AppendUint64(b, n.replica)
	return binary.BigEndian.AppendUint64(b, index)
}

func nodeOf(key []byte) (node, bool) {
	if len(key) < 20 {
		return node{}, false
	}
	return node{binary.BigEndian.Uint64(key[4:]), binary.BigEndian.Uint64(key[12:])}, true
}

func indexOf(key []byte) uint64 {
	if len(key) < 28 {
		return 0
	}
	return binary.BigEndian.Uint64(key[20:])
}
