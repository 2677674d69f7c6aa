package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// nodeState is what the store remembers of a replica that it has written or read. dragonboat writes one replica from one worker at a
// time; the maps around it are shared.
type nodeState struct {
	state    raftpb.State
	last     uint64 // the last entry, or the snapshot that stands for it
	hasLast  bool
	snapshot uint64
}

func (s *Store) node(n node) *nodeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.nodes[n]
	if !ok {
		st = &nodeState{}
		s.nodes[n] = st
	}
	return st
}

// forget drops what is remembered of a replica.
func (s *Store) forget(n node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, n)
}

// SaveRaftState writes the updates of one worker in one batch. When it returns, what a replica may promise on their ground is durable.
func (s *Store) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	w := s.batches[worker-1]
	w.batch.Reset()
	w.buf = w.buf[:0]
	promise := false
	after := make([]mark, len(updates))
	for i := range updates {
		u := &updates[i]
		n := node{u.ShardID, u.ReplicaID}
		before := s.marks.get(n)
		after[i] = before
		binding, err := s.collect(w, n, u, &after[i])
		if err != nil {
			return err
		}
		promise = promise || binding
		if after[i].last < before.last {
			// Entries are replaced by fewer ones, so the log becomes shorter in this batch: the mark has to say less before.
			lower := before
			lower.last = after[i].last
			if err := s.marks.set(n, lower); err != nil {
				s.failForGood(fmt.Errorf("marks of acknowledged log entries: %w", err))
			}
		}
	}
	if w.batch.Count() == 0 {
		return nil
	}
	sync := pebble.NoSync
	if promise {
		sync = pebble.Sync
	}
	if err := s.db.Apply(w.batch, sync); err != nil {
		s.failForGood(fmt.Errorf("log store %s: %w", s.dir, err))
	}
	for i := range updates {
		if err := s.marks.set(node{updates[i].ShardID, updates[i].ReplicaID}, after[i]); err != nil {
			s.failForGood(fmt.Errorf("marks of acknowledged log entries: %w", err))
		}
	}
	return nil
}

// collect adds one replica's update to the batch and says whether it is one that has to be durable before anybody hears of it: a new
// term, vote, entry or snapshot is, a new commit index alone is not.
func (s *Store) collect(w *scratch, n node, u *raftpb.Update, m *mark) (binding bool, err error) {
	st := s.node(n)
	if !raftpb.IsEmptyState(u.State) && !raftpb.IsStateEqual(st.state, u.State) {
		binding = u.State.Term != st.state.Term || u.State.Vote != st.state.Vote
		st.state = u.State
		m.term, m.vote = u.State.Term, u.State.Vote
		if err := s.put(w, n.key(kindState), &u.State); err != nil {
			return false, err
		}
	}
	last := uint64(0)
	if !raftpb.IsEmptySnapshot(u.Snapshot) && u.Snapshot.Index > st.snapshot {
		if err := s.putSnapshot(w.batch, n, u.Snapshot); err != nil {
			return false, err
		}
		st.snapshot, last, binding = u.Snapshot.Index, u.Snapshot.Index, true
	}
	for i := range u.EntriesToSave {
		e := &u.EntriesToSave[i]
		w.key = n.appendIndexed(w.key[:0], kindEntry, e.Index)
		if err := s.put(w, w.key, e); err != nil {
			return false, err
		}
		last, binding = e.Index, true
	}
	if last != 0 {
		st.last, st.hasLast, m.last = last, true, last
		if err := w.batch.Set(n.key(kindMaxIndex), binary.BigEndian.AppendUint64(nil, last), nil); err != nil {
			return false, err
		}
	}
	return binding, nil
}

type message interface {
	Size() int
	MarshalTo([]byte) (int, error)
}

// put encodes a message into the scratch buffer and sets it. The batch copies it.
func (s *Store) put(w *scratch, key []byte, m message) error {
	size := m.Size()
	if cap(w.buf) < size {
		w.buf = make([]byte, 2*size)
	}
	used, err := m.MarshalTo(w.buf[:cap(w.buf)])
	if err != nil {
		return fmt.Errorf("encode for the log store: %w", err)
	}
	if cap(w.buf) > 4<<20 {
		defer func() { w.buf = nil }()
	}
	return w.batch.Set(key, w.buf[:used], nil)
}

func (s *Store) putSnapshot(b *pebble.Batch, n node, snapshot raftpb.Snapshot) error {
	old, err := s.snapshots(n)
	if err != nil {
		return err
	}
	for _, o := range old {
		if o.Index < snapshot.Index {
			if err := b.Delete(n.indexed(kindSnapshot, o.Index), nil); err != nil {
				return err
			}
		}
	}
	body, err := snapshot.Marshal()
	if err != nil {
		return err
	}
	return b.Set(n.indexed(kindSnapshot, snapshot.Index), body, nil)
}

// commit applies a batch durably.
func (s *Store) commit(b *pebble.Batch) error {
	if err := s.db.Apply(b, pebble.Sync); err != nil {
		s.failForGood(fmt.Errorf("log store %s: %w", s.dir, err))
	}
	return b.Close()
}

// SaveSnapshots records snapshots that replicas made of themselves.
func (s *Store) SaveSnapshots(updates []raftpb.Update) error {
	b := s.db.NewBatch()
	for _, u := range updates {
		n := node{u.ShardID, u.ReplicaID}
		st := s.node(n)
		if raftpb.IsEmptySnapshot(u.Snapshot) || u.Snapshot.Index <= st.snapshot {
			continue
		}
		st.snapshot = u.Snapshot.Index
		if err := s.putSnapshot(b, n, u.Snapshot); err != nil {
			return errors.Join(err, b.Close())
		}
	}
	if b.Count() == 0 {
		return b.Close()
	}
	return s.commit(b)
}

// ImportSnapshot makes a snapshot the whole of a replica's log, whatever that had promised before: the repair of a shard that lost its
// majority.
func (s *Store) ImportSnapshot(snapshot raftpb.Snapshot, replica uint64) error {
	if snapshot.Type == raftpb.UnknownStateMachine {
		return errors.New("import a snapshot: it does not say of which kind of state machine it is")
	}
	n := node{snapshot.ShardID, replica}
	old, err := s.snapshots(n)
	if err != nil {
		return err
	}
	b := s.db.NewBatch()
	for _, o := range old {
		if o.Index >= snapshot.Index {
			if err := b.Delete(n.indexed(kindSnapshot, o.Index), nil); err != nil {
				return err
			}
		}
	}
	state := raftpb.State{Term: snapshot.Term, Commit: snapshot.Index}
	records := map[byte]interface{ Marshal() ([]byte, error) }{
		kindBootstrap: &raftpb.Bootstrap{Join: true, Type: snapshot.Type}, kindState: &state,
	}
	for kind, record := range records {
		body, err := record.Marshal()
		if err == nil {
			err = b.Set(n.key(kind), body, nil)
		}
		if err != nil {
			return errors.Join(err, b.Close())
		}
	}
	if err := s.putSnapshot(b, n, snapshot); err != nil {
		return errors.Join(err, b.Close())
	}
	if err := b.Set(n.key(kindMaxIndex), binary.BigEndian.AppendUint64(nil, snapshot.Index), nil); err != nil {
		return errors.Join(err, b.Close())
	}
	if err := s.marks.set(n, mark{}); err != nil {
		return err
	}
	if err := s.commit(b); err != nil {
		return err
	}
	s.forget(n)
	return nil
}

// SaveBootstrapInfo records how a replica began.
func (s *Store) SaveBootstrapInfo(shard, replica uint64, info raftpb.Bootstrap) error {
	body, err := info.Marshal()
	if err != nil {
		return err
	}
	b := s.db.NewBatch()
	if err := b.Set(node{shard, replica}.key(kindBootstrap), body, nil); err != nil {
		return err
	}
	return s.commit(b)
}

// RemoveEntriesTo removes entries below the index. A crash may bring them back, which is harmless, so nothing is synced.
func (s *Store) RemoveEntriesTo(shard, replica, index uint64) error {
	n := node{shard, replica}
	return s.db.DeleteRange(n.indexed(kindEntry, 0), n.indexed(kindEntry, index), pebble.NoSync)
}

// CompactEntriesTo gives the room of removed entries back, some time; the channel closes when it has.
func (s *Store) CompactEntriesTo(shard, replica, index uint64) (<-chan struct{}, error) {
	c := compaction{node: node{shard, replica}, index: index, done: make(chan struct{})}
	select {
	case s.compactions <- c:
	default:
		close(c.done) // pebble gets there by itself
	}
	return c.done, nil
}

// RemoveNodeData removes everything of a replica.
func (s *Store) RemoveNodeData(shard, replica uint64) error {
	n := node{shard, replica}
	b := s.db.NewBatch()
	failed := []error{
		b.Delete(n.key(kindState), nil), b.Delete(n.key(kindBootstrap), nil), b.Delete(n.key(kindMaxIndex), nil),
		b.DeleteRange(n.indexed(kindSnapshot, 0), n.indexed(kindSnapshot, math.MaxUint64), nil),
		b.Delete(n.indexed(kindSnapshot, math.MaxUint64), nil),
		b.DeleteRange(n.indexed(kindEntry, 0), n.indexed(kindEntry, math.MaxUint64), nil),
		s.marks.set(n, mark{}), // before: a mark may say less than the log
	}
	if err := errors.Join(failed...); err != nil {
		return errors.Join(err, b.Close())
	}
	if err := s.commit(b); err != nil {
		return err
	}
	s.forget(n)
	return nil
}

// ListNodeInfo lists the replicas that have begun here.
func (s *Store) ListNodeInfo() ([]raftio.NodeInfo, error) {
	var all []raftio.NodeInfo
	err := s.walk(node{}.key(kindBootstrap), []byte{kindBootstrap, kindBootstrap, 1}, func(key, _ []byte) error {
		if n, ok := nodeOf(key); ok {
			all = append(all, raftio.GetNodeInfo(n.shard, n.replica))
		}
		return nil
	})
	return all, err
}

// holdsBatches says whether the folder has dragonboat's other layout.
func (s *Store) holdsBatches() (found bool, err error) {
	err = s.walk([]byte{kindBatch, kindBatch}, []byte{kindBatch, kindBatch + 1}, func([]byte, []byte) error {
		found = true
		return errEnough
	})
	return found, err
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// walk visits keys from low to below high.
func (s *Store) walk(low, high []byte, visit func(key, value []byte) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %s: %v", ErrDamaged, s.dir, r)
		}
	}()
	iter := s.db.NewIter(&pebble.IterOptions{LowerBound: low, UpperBound: bytes.Clone(high)})
	for ok := iter.First(); ok; ok = iter.Next() {
		if err := visit(iter.Key(), iter.Value()); err != nil {
			if errors.Is(err, errEnough) {
				err = nil
			}
			return errors.Join(err, iter.Close())
		}
	}
	// Close reports what went wrong while reading, too.
	return iter.Close()
}
