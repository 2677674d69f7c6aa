package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// reported tells the owner of damage that was met while dragonboat reads: it ends the process at once, from where nobody can be asked.
func (s *Store) reported(err error) error {
	if errors.Is(err, ErrDamaged) {
		s.fail(err)
	}
	return err
}

// get reads one record; found is false if there is none. Damage is an error, not a panic.
func (s *Store) get(n node, key []byte, decode func([]byte) error) (found bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damaged(n, "%v", r)
		}
	}()
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, damaged(n, "%w", err)
	}
	defer closer.Close()
	if len(value) == 0 {
		return false, nil
	}
	if err := decode(value); err != nil {
		return false, damaged(n, "a record of kind %d cannot be read: %w", key[0], err)
	}
	return true, nil
}

// GetBootstrapInfo reads how a replica began. Errors: raftio.ErrNoBootstrapInfo, or a *DamageError if the replica had made promises.
func (s *Store) GetBootstrapInfo(shard, replica uint64) (info raftpb.Bootstrap, err error) {
	n := node{shard, replica}
	found, err := s.get(n, n.key(kindBootstrap), info.Unmarshal)
	switch m := s.marks.get(n); {
	case err != nil:
		return info, err
	case !found && !m.empty():
		return info, damaged(n, "nothing of it is left; it had acknowledged entries up to %d in term %d", m.last, m.term)
	case !found:
		return info, raftio.ErrNoBootstrapInfo
	}
	return info, nil
}

func (s *Store) lastIndex(n node) (last uint64, found bool, err error) {
	st := s.node(n)
	if st.hasLast {
		return st.last, true, nil
	}
	found, err = s.get(n, n.key(kindMaxIndex), func(b []byte) error {
		if len(b) < 8 {
			return fmt.Errorf("%d bytes", len(b))
		}
		last = binary.BigEndian.Uint64(b)
		return nil
	})
	return last, found, err
}

// ReadRaftState reads what dragonboat starts a replica from, and compares it with what the replica has promised. Errors:
// raftio.ErrNoSavedLog, a *DamageError.
func (s *Store) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	n := node{shard, replica}
	out := raftio.RaftState{FirstIndex: snapshot}
	last, found, err := s.lastIndex(n)
	if err != nil {
		return raftio.RaftState{}, err
	}
	if found && last != snapshot {
		first, any, err := s.firstFrom(n, snapshot)
		switch {
		case err != nil:
			return raftio.RaftState{}, err
		case !any || first > last:
			return raftio.RaftState{}, damaged(n, "it should reach from %d to entry %d and has none of them", snapshot, last)
		case first > snapshot+1:
			return raftio.RaftState{}, damaged(n, "its entries begin at %d, the snapshot before them ends at %d", first, snapshot)
		}
		out.FirstIndex, out.EntryCount = first, last-first+1
	}
	found, err = s.get(n, n.key(kindState), out.State.Unmarshal)
	if err != nil {
		return raftio.RaftState{}, err
	}
	if err := s.compare(n, out.State, max(last, snapshot)); err != nil {
		return raftio.RaftState{}, err
	}
	if !found {
		return raftio.RaftState{}, raftio.ErrNoSavedLog
	}
	s.node(n).state = out.State
	return out, nil
}

// compare finds out whether something that was acknowledged is missing.
func (s *Store) compare(n node, state raftpb.State, last uint64) error {
	m := s.marks.get(n)
	switch {
	case last < m.last:
		return damaged(n, "it ends at entry %d, entries up to %d had been acknowledged", last, m.last)
	case state.Term < m.term:
		return damaged(n, "it knows of term %d, the replica had promised term %d", state.Term, m.term)
	case state.Term == m.term && m.vote != 0 && state.Vote != m.vote:
		return damaged(n, "in term %d it has a vote for replica %d, the vote had gone to replica %d", m.term, state.Vote, m.vote)
	}
	return nil
}

func (s *Store) firstFrom(n node, index uint64) (first uint64, found bool, err error) {
	err = s.walk(n.indexed(kindEntry, index), n.indexed(kindEntry, math.MaxUint64), func(key, _ []byte) error {
		first, found = indexOf(key), true
		return errEnough
	})
	if err != nil {
		err = damaged(n, "%w", err)
	}
	return first, found, err
}

// IterateEntries appends the entries from low to below high, up to maxSize bytes or one entry more. An entry that should be there and
// is not, or cannot be read, is a *DamageError.
func (s *Store) IterateEntries(entries []raftpb.Entry, size, shard, replica, low, high, maxSize uint64) ([]raftpb.Entry, uint64, error) {
	n := node{shard, replica}
	last, found, err := s.lastIndex(n)
	if err != nil {
		return nil, 0, s.reported(err)
	}
	if !found {
		return entries, size, nil
	}
	high = min(high, last+1)
	want := low
	err = s.walk(n.indexed(kindEntry, low), n.indexed(kindEntry, high), func(key, value []byte) error {
		e, err := decodeEntry(value)
		if err != nil {
			return damaged(n, "entry %d cannot be read: %w", indexOf(key), err)
		}
		if indexOf(key) != want || e.Index != want {
			return damaged(n, "entry %d is missing, entry %d follows", want, e.Index)
		}
		want++
		size += uint64(e.SizeUpperLimit())
		entries = append(entries, e)
		if size > maxSize {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.As(err, new(*DamageError)) {
		err = damaged(n, "%w", err)
	}
	if err == nil && want < high && size <= maxSize {
		err = damaged(n, "entry %d is missing, entry %d is the last that was written", want, last)
	}
	if err != nil {
		return nil, 0, s.reported(err)
	}
	return entries, size, nil
}

// decodeEntry survives bytes that dragonboat's decoder does not.
func decodeEntry(b []byte) (e raftpb.Entry, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	err = e.Unmarshal(b)
	return e, err
}

// GetSnapshot reads the record of a replica's newest snapshot, the empty one if it has none.
func (s *Store) GetSnapshot(shard, replica uint64) (raftpb.Snapshot, error) {
	n := node{shard, replica}
	all, err := s.snapshots(n)
	if err != nil || len(all) == 0 {
		return raftpb.Snapshot{}, s.reported(err)
	}
	newest := all[len(all)-1]
	s.node(n).snapshot = newest.Index
	return newest, nil
}

func (s *Store) snapshots(n node) (all []raftpb.Snapshot, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damaged(n, "the record of a snapshot cannot be read: %v", r)
		}
	}()
	low, high := n.indexed(kindSnapshot, 0), append(n.indexed(kindSnapshot, math.MaxUint64), 0)
	err = s.walk(low, high, func(_, value []byte) error {
		var snapshot raftpb.Snapshot
		if err := snapshot.Unmarshal(value); err != nil {
			return damaged(n, "the record of a snapshot cannot be read: %w", err)
		}
		all = append(all, snapshot)
		return nil
	})
	if err != nil && !errors.As(err, new(*DamageError)) {
		err = damaged(n, "%w", err)
	}
	return all, err
}
