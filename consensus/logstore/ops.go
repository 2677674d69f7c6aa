package logstore

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/lni/dragonboat/v4/raftpb"
)

// The operations of a frame's payload: a kind, unless it is opSegment the replica and the number of its operation, then what replayOp
// reads. A checkpoint has the number of the operation before it.
const (
	opSegment   = 1 + iota // version, number
	opGroup                // checkpoint: what is known of the replica, but its entries
	opBootstrap            // raftpb.Bootstrap
	opState                // term, vote, commit
	opSnapshot             // raftpb.Snapshot
	opRestart              // the log is emptied and goes on behind this index
	opEntries              // a run of entries, which replaces whatever followed
	opMoved                // a run of entries that stood in an older segment
	opCompact              // entries up to this index are gone
	opRemove               // the replica is gone
)

const formatVersion = 1

// runBytes is how much of a batch of entries makes one run, which is read and checked as a whole.
const runBytes = 64 << 10

// node names one replica of one shard.
type node struct{ shard, replica uint64 }

func (n node) String() string { return fmt.Sprintf("shard %d replica %d", n.shard, n.replica) }

func appendHead(b []byte, kind byte, g *group) []byte {
	b = append(b, kind)
	b = binary.AppendUvarint(b, g.node.shard)
	b = binary.AppendUvarint(b, g.node.replica)
	return binary.AppendUvarint(b, g.operation)
}

// appendOp begins the group's next operation.
func appendOp(b []byte, kind byte, g *group) []byte {
	g.operation++
	return appendHead(b, kind, g)
}

func appendIndexOp(b []byte, kind byte, g *group, index uint64) []byte {
	return binary.AppendUvarint(appendOp(b, kind, g), index)
}

func appendState(b []byte, s raftpb.State) []byte {
	b = binary.AppendUvarint(b, s.Term)
	b = binary.AppendUvarint(b, s.Vote)
	return binary.AppendUvarint(b, s.Commit)
}

func appendBytes(b, value []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(value))), value...)
}

func appendMessage(b []byte, m raftpb.Marshaler) []byte { return appendBytes(b, raftpb.MustMarshal(m)) }

// appendRun appends what opEntries and opMoved say of a run, and its entries as they stand in data. It returns where these are in b.
func appendRun(b []byte, r run, data []byte) ([]byte, int) {
	b = appendRunHead(b, r)
	return append(b, data...), len(b)
}

// appendRunHead ends with the checksum.
func appendRunHead(b []byte, r run) []byte {
	b = binary.AppendUvarint(b, r.base)
	b = binary.AppendUvarint(b, uint64(r.skip))
	b = binary.AppendUvarint(b, uint64(r.count))
	b = binary.AppendUvarint(b, uint64(r.size))
	return binary.LittleEndian.AppendUint32(b, r.crc)
}

// appendEntries encodes entries as a run's data: length and entry, one after the other.
func appendEntries(b []byte, entries []raftpb.Entry) []byte {
	for i := range entries {
		size := entries[i].Size()
		b = binary.AppendUvarint(b, uint64(size))
		b = slices.Grow(b, size)
		b = b[:len(b)+size]
		raftpb.MustMarshalTo(&entries[i], b[len(b)-size:])
	}
	return b
}

// entriesSize is how long appendEntries makes them.
func entriesSize(entries []raftpb.Entry) int {
	total := 0
	for i := range entries {
		size := entries[i].Size()
		total += (bits.Len64(uint64(size)|1)+6)/7 + size
	}
	return total
}

// decoder reads operations. The first malformed one sets err, and everything after it reads as zero.
type decoder struct {
	b   []byte
	at  int
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("malformed %s at byte %d of a frame", what, d.at)
	}
	d.at = len(d.b)
}

func (d *decoder) more() bool { return d.err == nil && d.at < len(d.b) }

func (d *decoder) byte() byte {
	if d.at >= len(d.b) {
		d.fail("operation")
		return 0
	}
	d.at++
	return d.b[d.at-1]
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b[d.at:])
	if n <= 0 {
		d.fail("number")
		return 0
	}
	d.at += n
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 {
		d.fail("number")
		return 0
	}
	return uint32(v)
}

func (d *decoder) fixed32() uint32 {
	if len(d.b)-d.at < 4 {
		d.fail("checksum")
		return 0
	}
	d.at += 4
	return binary.LittleEndian.Uint32(d.b[d.at-4:])
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)-d.at) {
		d.fail("length")
		return nil
	}
	d.at += int(n)
	return d.b[d.at-int(n) : d.at]
}

func (d *decoder) message(m raftpb.Unmarshaler) {
	if b := d.bytes(); d.err == nil {
		if err := unmarshal(m, b); err != nil {
			d.fail("message")
		}
	}
}

// unmarshal survives bytes that dragonboat's decoders do not.
func unmarshal(m raftpb.Unmarshaler, b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return m.Unmarshal(b)
}

func (d *decoder) node() node { return node{d.uvarint(), d.uvarint()} }

func (d *decoder) state() raftpb.State {
	return raftpb.State{Term: d.uvarint(), Vote: d.uvarint(), Commit: d.uvarint()}
}

// run reads what appendRun wrote; base is where the payload stands in its segment.
func (d *decoder) run(s *segment, base int64) run {
	r := run{base: d.uvarint(), skip: d.uint32(), count: d.uint32(), seg: s}
	size := d.uvarint()
	r.crc = d.fixed32()
	if size > uint64(len(d.b)-d.at) || r.count == 0 || r.base == 0 || r.base > math.MaxInt64 {
		d.fail("run")
		return run{}
	}
	r.off, r.size = base+int64(d.at), uint32(size)
	d.at += int(size)
	return r
}

// entries decodes a run's data, from the entry with index low on, until high or more than maxSize bytes are there. size is what the
// entries before took, as dragonboat counts.
func (r run) entries(data []byte, into []raftpb.Entry, size, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	d := decoder{b: data}
	for index := r.base; index < high && d.more(); index++ {
		b := d.bytes()
		if index < low || d.err != nil {
			continue
		}
		var e raftpb.Entry
		if err := unmarshal(&e, b); err != nil {
			return nil, 0, fmt.Errorf("entry %d cannot be read: %w", index, err)
		}
		if e.Index != index {
			return nil, 0, fmt.Errorf("entry %d stands where %d should", e.Index, index)
		}
		into = append(into, e)
		if size += uint64(e.SizeUpperLimit()); size > maxSize {
			break
		}
	}
	return into, size, d.err
}
