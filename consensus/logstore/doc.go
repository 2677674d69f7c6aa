// Package logstore keeps the logs of all raft replicas of a peer: dragonboat's raftio.ILogDB over one pebble store.
//
// It reads and writes the very layout of dragonboat's own store ("sharded-pebble", plain entries), so data folders of either open with
// the other. It exists because of what that one cannot do:
//
//   - Tell a lost acknowledgement from a torn tail. pebble ends the replay of its write-ahead log at the first record that it cannot
//     read and calls this the end, which is right for a write that was torn by a crash and wrong for one that was acknowledged. Marks
//     (marks.go) say how far each replica had promised something; a log that ends before its mark is damaged, and is named.
//   - Name the replica whose data are damaged, instead of ending the process from a goroutine that cannot be asked.
//   - Stop in order when the disk fails: the failure is reported and the goroutine that met it stands still, so that the process can
//     end with a sentence and nothing is written after it.
//   - Leave out the fsync for updates that need none: a new commit index alone is no promise (Ongaro's thesis, section 3.8: it is
//     volatile state), and it is most of what a leader with one write in flight saves.
package logstore
