// Package logstore keeps the logs of all raft replicas of one peer on disk: entries, terms, votes and the records of snapshots. It is what
// dragonboat calls a log database (raftio.ILogDB).
//
// It is one log for all replicas, a sequence of segment files that are only ever appended to. What several replicas, or several workers,
// have to store at the same time goes to the disk with one write and one fdatasync, and nothing is written twice as in a log-structured
// tree. What follows is the disk format and the rules that make it safe.
//
// # Frames
//
// A segment is a sequence of frames: length, CRC-32C of segment number and payload, payload. A frame is written and synced before the
// next one is begun, so after a crash only the last frame of the last segment can be torn; that is cut off, since nobody was told of it.
// A payload is a sequence of operations, which are applied to the index in memory when they are appended and again, in the same order,
// when the store is opened.
//
// # What is synced
//
// Entries, terms, votes, snapshots and committed membership changes are durable when SaveRaftState returns. A commit index that moved is
// not, as in etcd: it is volatile state (Ongaro's thesis, section 3.8) that raft finds again from the leader, and syncing it would cost a
// second fdatasync per write. It is written with the next operation of its replica.
//
// # Damage
//
// An unreadable frame anywhere but at the end is damage. It is stepped over, and whose operations it had is found out: every replica's
// operations are numbered, and a gap in the numbers names the replica (DamageError), while the others go on. What was lost at the very
// end leaves no gap; marks beside the log say how far each replica had acknowledged something (marks.go). A last frame that cannot be read
// although all of it was written is refused for the store as a whole.
//
// # Segments
//
// Each segment begins with a checkpoint: everything about every replica but its entries. So only entries keep an old segment alive, and
// segments are only ever deleted from the oldest on. When replicas that rarely write keep too many alive, their entries are appended once
// more to the newest (operation moved), and the oldest segment goes.
package logstore
