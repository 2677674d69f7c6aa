package store

import (
	"fmt"
	"strconv"
	"time"
)

// Revision is a hybrid-logical-clock stamp and, in decimal, the Kubernetes
// resourceVersion. From the top: 43 bits of milliseconds since Epoch, 12 bits of
// logical counter, 8 bits of shard number. It lasts until the year 2304.
//
// Two shards never assign the same revision, because the low bits differ; within
// a shard revisions only grow. The form follows Kulkarni et al., "Logical Physical
// Clocks" (2014), with the shard number in place of a node number.
type Revision int64

const (
	// ShardBits is the width of the shard number in the low bits.
	ShardBits = 8
	// LogicalBits is the width of the counter between shard number and time.
	LogicalBits = 12
	// Tick is the distance between two neighbouring revisions of one shard.
	Tick Revision = 1 << ShardBits
	// MaxShard is the highest shard number a revision can carry.
	MaxShard = 1<<ShardBits - 1

	timeShift = ShardBits + LogicalBits
	shardMask = Revision(MaxShard)

	// maxStamp bounds what a proposer may ask for, so that a broken clock cannot
	// drive the shard's revision to the end of int64 (it is the year 2165).
	maxStamp = Revision(1) << 62
)

// Epoch is the moment of revision 0.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// At returns the first revision of the given moment, with shard number zero. A
// moment before Epoch gives zero.
func At(t time.Time) Revision {
	ms := t.UnixMilli() - Epoch.UnixMilli()
	if ms < 0 {
		return 0
	}
	return Revision(ms) << timeShift
}

// Time is the physical part of r, to the millisecond.
func (r Revision) Time() time.Time { return Epoch.Add(time.Duration(r.millis()) * time.Millisecond) }

// Shard is the number of the shard that assigned r.
func (r Revision) Shard() uint64 { return uint64(r & shardMask) }

// String is the canonical decimal, the resourceVersion.
func (r Revision) String() string { return strconv.FormatInt(int64(r), 10) }

// ParseRevision reads the canonical decimal of a revision. Signs, spaces, leading
// zeros and values outside of int64 are errors.
func ParseRevision(s string) (Revision, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || strconv.FormatInt(v, 10) != s {
		return 0, fmt.Errorf("revision %q is not a canonical decimal", s)
	}
	return Revision(v), nil
}

func (r Revision) millis() int64 { return int64(r >> timeShift) }

// onShard is the lowest revision of the shard that is at or above r.
func (r Revision) onShard(shard uint64) Revision {
	s := r&^shardMask | Revision(shard)
	if s < r {
		s += Tick
	}
	return s
}
