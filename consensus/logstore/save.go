package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"

	"github.com/lni/dragonboat/v4/raftpb"
)

// SaveRaftState stores what a step of some replicas' raft asks for, all of it or, after a crash, nothing. Entries, terms, votes, snapshots
// and what commits a membership change are durable when it returns.
//
// A commit index alone is only remembered, and written with the replica's next operation. Raft proposes a membership change after it has
// applied the one before; so whatever a crash loses, a replica wakes up at most one change behind, and the majorities of two consecutive
// memberships have a voter in common. That committed changes are synced as well makes even this one rare.
func (s *Store) SaveRaftState(updates []raftpb.Update, _ uint64) error {
	if carryEntries(updates) {
		// The goroutine that steps raft has just handed over what is to be sent, and writes and syncs now, in its thread. Whoever is ready
		// goes first: messages leave before the disk is waited for, and, afterwards, proposals and acknowledgements that have arrived
		// meanwhile all join the next step, and so share its messages and its sync.
		runtime.Gosched()
		defer runtime.Gosched()
	}
	promised, err := s.save(updates)
	if err != nil {
		return s.failed(err)
	}
	for i := range promised {
		if err := s.marks.set(node{updates[i].ShardID, updates[i].ReplicaID}, promised[i]); err != nil {
			return s.failed(fmt.Errorf("marks of acknowledged log entries: %w", err))
		}
	}
	return nil
}

// carryEntries tells a step that stores or applies something from one of heartbeats and reads alone.
func carryEntries(updates []raftpb.Update) bool {
	for i := range updates {
		if len(updates[i].EntriesToSave)+len(updates[i].CommittedEntries) > 0 {
			return true
		}
	}
	return false
}

// save returns what the replicas have promised now, nothing if that is what it was.
func (s *Store) save(updates []raftpb.Update) ([]mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bytes, durable := 0, false
	for i := range updates {
		u := &updates[i]
		if s.groupOf(u).mustSync(u) {
			durable = true
			bytes += updateSize(u)
		}
	}
	if !durable || s.err != nil {
		for i := range updates {
			s.groupOf(&updates[i]).remember(updates[i].State)
		}
		return nil, s.err
	}
	promised := make([]mark, len(updates))
	var err error
	s.write(bytes, func(b []byte) []byte {
		start := len(b)
		for i := range updates {
			u := &updates[i]
			g := s.groupOf(u)
			if b, err = s.update(b, g, u); err != nil {
				return b[:start]
			}
			promised[i] = g.mark()
			// Entries are replaced by fewer ones: the mark has to say less before the log does.
			if before := s.marks.get(g.node); promised[i].last < before.last {
				before.last = promised[i].last
				err = s.marks.lower(g.node, before)
			}
		}
		return b
	})
	if err != nil {
		// The index has taken a part of what the log has not.
		s.err = err
		return nil, err
	}
	return promised, s.flush()
}

func (s *Store) groupOf(u *raftpb.Update) *group { return s.group(node{u.ShardID, u.ReplicaID}) }

// mustSync tells whether raft acts on the update in a way that a crash must not undo.
func (g *group) mustSync(u *raftpb.Update) bool {
	if len(u.EntriesToSave) > 0 || u.Snapshot.Index > g.snapshot.Index {
		return true
	}
	if !raftpb.IsEmptyState(u.State) && (u.Term != g.state.Term || u.Vote != g.state.Vote) {
		return true
	}
	for i := range u.CommittedEntries {
		if u.CommittedEntries[i].IsConfigChange() {
			return true
		}
	}
	return false
}

func updateSize(u *raftpb.Update) int {
	size := 256
	for i := range u.EntriesToSave {
		size += u.EntriesToSave[i].SizeUpperLimit() + 8
	}
	return size
}

func (g *group) remember(s raftpb.State) {
	if !raftpb.IsEmptyState(s) && s != g.state {
		g.state, g.behind = s, true
	}
}

// update appends one replica's update to the frame and to the index.
func (s *Store) update(b []byte, g *group, u *raftpb.Update) ([]byte, error) {
	g.remember(u.State)
	b = g.appendBehind(b)
	if u.Snapshot.Index > g.snapshot.Index {
		g.snapshot = u.Snapshot
		b = appendMessage(appendOp(b, opSnapshot, g), &g.snapshot)
		g.restart(u.Snapshot.Index)
		b = appendIndexOp(b, opRestart, g, u.Snapshot.Index)
	}
	for rest := u.EntriesToSave; len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+rest[n].SizeUpperLimit() <= runBytes) {
			size += rest[n].SizeUpperLimit()
			n++
		}
		var err error
		if b, err = s.entries(b, g, rest[:n]); err != nil {
			return b, err
		}
		rest = rest[n:]
	}
	return b, nil
}

// entries appends one run.
func (s *Store) entries(b []byte, g *group, entries []raftpb.Entry) ([]byte, error) {
	r := run{base: entries[0].Index, count: uint32(len(entries)), seg: s.current(), size: uint32(entriesSize(entries))}
	b = appendRunHead(appendOp(b, opEntries, g), r)
	data := len(b)
	b = appendEntries(b, entries)
	r.crc = crc32.Checksum(b[data:], castagnoli)
	binary.LittleEndian.PutUint32(b[data-4:], r.crc)
	r.off = s.pending[len(s.pending)-1].off + int64(data)
	return b, g.append(r)
}

// durably appends operations and waits until they are on the disk.
func (s *Store) durably(bytes int, appendTo func(b []byte) []byte) error {
	s.mu.Lock()
	if s.err == nil {
		s.write(bytes, appendTo)
		s.flush() //nolint:errcheck // it is s.err
	}
	err := s.err
	s.mu.Unlock()
	return s.failed(err)
}

// SaveSnapshots stores the records of snapshots that this peer took.
func (s *Store) SaveSnapshots(updates []raftpb.Update) error {
	size := 0
	for i := range updates {
		size += updates[i].Snapshot.Size()
	}
	return s.durably(size, func(b []byte) []byte {
		for i := range updates {
			u := &updates[i]
			if g := s.groupOf(u); u.Snapshot.Index > g.snapshot.Index {
				g.snapshot = u.Snapshot
				b = appendMessage(appendOp(g.appendBehind(b), opSnapshot, g), &g.snapshot)
			}
		}
		return b
	})
}

// SaveBootstrapInfo stores how a replica was started first.
func (s *Store) SaveBootstrapInfo(shard, replica uint64, info raftpb.Bootstrap) error {
	return s.durably(info.Size(), func(b []byte) []byte {
		g := s.group(node{shard, replica})
		g.bootstrap = &info
		return appendMessage(appendOp(b, opBootstrap, g), g.bootstrap)
	})
}

// ImportSnapshot makes a snapshot the whole of a replica's log, whatever that had promised before: the repair of a shard that lost its
// majority.
func (s *Store) ImportSnapshot(snapshot raftpb.Snapshot, replica uint64) error {
	if snapshot.Type == raftpb.UnknownStateMachine {
		return errors.New("import a snapshot: it does not say of which kind of state machine it is")
	}
	n := node{snapshot.ShardID, replica}
	if err := s.marks.lower(n, mark{}); err != nil {
		return s.failed(err)
	}
	return s.durably(snapshot.Size(), func(b []byte) []byte {
		b = s.remove(b, n)
		g := s.group(n)
		g.bootstrap = &raftpb.Bootstrap{Join: true, Type: snapshot.Type}
		b = appendMessage(appendOp(b, opBootstrap, g), g.bootstrap)
		g.snapshot = snapshot
		b = appendMessage(appendOp(b, opSnapshot, g), &g.snapshot)
		g.restart(snapshot.Index)
		b = appendIndexOp(b, opRestart, g, snapshot.Index)
		g.remember(raftpb.State{Term: snapshot.Term, Commit: snapshot.Index})
		return g.appendBehind(b)
	})
}

// RemoveEntriesTo drops the entries up to the index. It need not be durable: what a crash brings back is dropped again.
func (s *Store) RemoveEntriesTo(shard, replica, index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g, ok := s.groups[node{shard, replica}]; ok {
		s.write(0, func(b []byte) []byte {
			g.compact(index)
			return appendIndexOp(b, opCompact, g, index)
		})
	}
	return s.err
}

// CompactEntriesTo has nothing to do: files are given back as their entries go.
func (s *Store) CompactEntriesTo(uint64, uint64, uint64) (<-chan struct{}, error) {
	done := make(chan struct{})
	close(done)
	return done, nil
}

// RemoveNodeData forgets a replica.
func (s *Store) RemoveNodeData(shard, replica uint64) error {
	n := node{shard, replica}
	if err := s.marks.lower(n, mark{}); err != nil { // before: a mark may say less than the log
		return s.failed(err)
	}
	return s.durably(0, func(b []byte) []byte { return s.remove(b, n) })
}

func (s *Store) remove(b []byte, n node) []byte {
	g, ok := s.groups[n]
	if !ok {
		return b
	}
	g.set(nil)
	delete(s.groups, n)
	return appendOp(b, opRemove, g)
}
