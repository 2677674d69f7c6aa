package consensus

import "shoal/consensus/store"

// ReadLevel says how fresh a read must be.
type ReadLevel int

const (
	// Linearizable reads see every write that was acknowledged before they began.
	Linearizable ReadLevel = iota
	// Local reads answer from a replica as it is, possibly behind, and also without
	// a quorum.
	Local
)

// ListOptions selects keys: those with the prefix, at or above Start, below End.
type ListOptions struct {
	Prefix string
	// Start is inclusive, "" is the beginning; End is exclusive, "" is none.
	Start, End string
	// Limit bounds the number of KVs; 0 is no limit.
	Limit int
	// At is the exact revision to read; 0 is the newest. Revisions of other shards
	// are allowed: what is read is the state after every change ≤ At.
	At store.Revision
	// CountOnly leaves KVs empty.
	CountOnly bool
	// Reverse lists from the highest key down.
	Reverse bool
}

// ListResult is the answer to a List.
type ListResult struct {
	KVs []store.KV
	// More says that Limit cut the list.
	More bool
	// Count is the number of keys in the range, those beyond Limit included.
	Count int64
	// Revision is the shard's revision that the list shows: At if that was given.
	Revision store.Revision
	// Whole is Revision, unless At lies among the changes of one transaction, of which
	// the list then shows a part: it is the revision of that transaction's last change.
	Whole store.Revision
}

// WatchOptions selects the events of a watch.
type WatchOptions struct {
	Prefix string
	// After is the revision whose later events are delivered; 0 is from now on. One
	// ahead of the shard is allowed: events up to it are left out.
	After store.Revision
	// Progress asks for a progress mark at the end of every batch, and whenever the
	// shard's revision has advanced without an event for this watch. Whoever needs
	// one now and then asks with Watch.Mark instead.
	Progress bool
	// Stay lets the watch wait, however long, where no replica that knows a leader can
	// be reached: it then reads the local one, which may be cut off. Without it such a
	// watch ends with ErrNoQuorum, so that its reader learns that it sees nothing new.
	Stay bool
}

// View is an immutable snapshot of a local replica.
type View = store.View

// Leadership reports that a local replica gained or lost its shard's leadership.
type Leadership struct {
	Shard  uint64
	Leader bool
	Term   uint64
}

// ShardStatus is what a host knows about a shard.
type ShardStatus struct {
	Shard uint64
	// Local says that this host runs a replica; ReplicaID, Voter and Revision are
	// that replica's and are zero without one.
	Local     bool
	ReplicaID uint64
	Voter     bool
	Revision  store.Revision
	Leading   bool
	// Leader is the peer believed to lead the shard, "" if none is known.
	Leader string
	Term   uint64
	// Members are the shard's replicas as its raft group had them when a replica last
	// read that, nil if none was asked yet. See Replicas.
	Members []Member
	// Quarantine is why the local replica is left stopped, "" if it is not. It is
	// replaced by itself once the shard has a majority without it.
	Quarantine string
	// Assigned are the replicas that the shard is to have; nil if that is not known here.
	Assigned []Member
	// Trouble is one sentence on why the local replica does not work, "" if it does.
	Trouble string
}

// Replicas are the shard's replicas as well as they are known: the group's own list,
// or else those that are assigned, which may not be in the group yet or any more.
func (s ShardStatus) Replicas() []Member {
	if s.Members != nil {
		return s.Members
	}
	return s.Assigned
}

// Member is one replica of a shard.
type Member struct {
	Peer      string
	ReplicaID uint64
	Voter     bool
}
