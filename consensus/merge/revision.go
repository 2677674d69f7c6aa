package merge

import "shoal/consensus/store"

// tickMask covers the low bits of a revision, which number the shard.
const tickMask = store.Tick - 1

// ClosedThrough is the highest revision at or below which a shard that has reached
// last can assign nothing more: its next revision has the same low bits in a later
// tick.
func ClosedThrough(last store.Revision) store.Revision {
	if last <= 0 {
		return 0
	}
	return last | tickMask
}

// CloseTarget is the revision that a shard has to reach so that it is closed
// through upTo. It lies in upTo's own tick. Asking for upTo itself would push shards
// with lower numbers into the next tick, the next reader would push the others
// after them, and an idle cluster would write for ever.
func CloseTarget(shard uint64, upTo store.Revision) store.Revision {
	return upTo&^tickMask | store.Revision(shard)&tickMask
}

// OnShard is the shard's own revision whose state is the shard's state at rev: the
// highest one at or below it, 0 if there is none.
func OnShard(shard uint64, rev store.Revision) store.Revision {
	at := CloseTarget(shard, rev)
	if at > rev {
		at -= store.Tick
	}
	return max(at, 0)
}

// AtLeast is the shard's own lowest revision that is not below rev; 0 for 0, and rev itself if there is none.
func AtLeast(shard uint64, rev store.Revision) store.Revision {
	if rev == 0 {
		return 0
	}
	at := CloseTarget(shard, rev)
	if at < rev {
		at += store.Tick
	}
	return max(at, rev)
}
