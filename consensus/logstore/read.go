package logstore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// known is the group of a replica, nil if there is none. Error: a *DamageError, also where nothing is left of what was acknowledged.
func (s *Store) known(n node) (*group, error) {
	g, ok := s.groups[n]
	if ok {
		return g, g.damage
	}
	if m := s.marks.get(n); !m.empty() {
		return nil, damaged(n, "nothing of it is left; it had acknowledged entries up to %d in term %d", m.last, m.term)
	}
	return nil, nil
}

func (s *Store) check(n node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.known(n)
	return err
}

// ListNodeInfo lists the replicas that have begun here.
func (s *Store) ListNodeInfo() ([]raftio.NodeInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []raftio.NodeInfo
	for _, g := range s.sortedGroups() {
		if g.bootstrap != nil {
			all = append(all, raftio.GetNodeInfo(g.node.shard, g.node.replica))
		}
	}
	return all, nil
}

// GetBootstrapInfo is how a replica was started first. Errors: raftio.ErrNoBootstrapInfo, a *DamageError.
func (s *Store) GetBootstrapInfo(shard, replica uint64) (raftpb.Bootstrap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.known(node{shard, replica})
	switch {
	case err != nil:
		return raftpb.Bootstrap{}, err
	case g == nil || g.bootstrap == nil:
		return raftpb.Bootstrap{}, raftio.ErrNoBootstrapInfo
	}
	return *g.bootstrap, nil
}

// GetSnapshot is the newest snapshot's record, the empty one if there is none.
func (s *Store) GetSnapshot(shard, replica uint64) (raftpb.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.known(node{shard, replica})
	if g == nil || err != nil {
		return raftpb.Snapshot{}, err
	}
	return g.snapshot, nil
}

// ReadRaftState is what a replica wakes up with: its state and which entries from the snapshot on there are. Errors:
// raftio.ErrNoSavedLog, a *DamageError.
func (s *Store) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.known(node{shard, replica})
	switch {
	case err != nil:
		return raftio.RaftState{}, err
	case g == nil || raftpb.IsEmptyState(g.state):
		return raftio.RaftState{}, raftio.ErrNoSavedLog
	}
	out := raftio.RaftState{State: g.state, FirstIndex: snapshot}
	// What is in a snapshot was committed, also if the commit index was not written in time.
	out.State.Commit = max(g.state.Commit, snapshot)
	if first := max(g.first, snapshot); first <= g.last {
		out.FirstIndex, out.EntryCount = first, g.last-first+1
	}
	return out, nil
}

// IterateEntries appends the entries from low to below high, up to maxSize bytes or one entry more. size is what the given ones take; it
// returns what all of them take. Error: a *DamageError.
func (s *Store) IterateEntries(entries []raftpb.Entry, size, shard, replica, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	s.mu.Lock()
	entries, size, err := s.iterate(entries, size, node{shard, replica}, low, high, maxSize)
	s.mu.Unlock()
	if errors.Is(err, ErrDamaged) && s.opts.failed != nil {
		// dragonboat ends the process at once, from where nobody can be asked.
		s.opts.failed(err)
	}
	return entries, size, err
}

func (s *Store) iterate(entries []raftpb.Entry, size uint64, n node, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	g, err := s.known(n)
	if g == nil || err != nil || low < g.first {
		return entries, size, err
	}
	for next := low; next < high && next <= g.last; {
		at := g.find(next)
		if at == len(g.runs) {
			return nil, 0, damaged(n, "entry %d is missing", next)
		}
		r := g.runs[at]
		data, err := s.read(r)
		if err == nil {
			entries, size, err = r.entries(data, entries, size, next, min(high, r.last()+1), maxSize)
		}
		switch {
		case errors.Is(err, errClosed) || (err != nil && s.err != nil):
			return nil, 0, err
		case err != nil:
			return nil, 0, damaged(n, "entry %d: %w", next, err)
		}
		if size > maxSize {
			break
		}
		next = r.last() + 1
	}
	return entries, size, nil
}

// read gets a run's data from its file. It lets go of the mutex meanwhile.
func (s *Store) read(r run) ([]byte, error) {
	if r.seg.written < r.off+int64(r.size) {
		s.flush() //nolint:errcheck // it is s.err
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case s.closed:
		return nil, errClosed
	}
	r.seg.readers++
	f := r.seg.r
	s.mu.Unlock()
	data := make([]byte, r.size)
	_, err := io.ReadFull(io.NewSectionReader(f, r.off, int64(r.size)), data)
	if err == nil && crc32.Checksum(data, castagnoli) != r.crc {
		err = fmt.Errorf("%s, byte %d: the checksum is wrong", r.seg.name, r.off)
	}
	s.mu.Lock()
	r.seg.readers--
	s.cond.Broadcast()
	return data, err
}
