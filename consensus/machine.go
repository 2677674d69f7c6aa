package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/statemachine"

	"shoal/consensus/bugs"
	"shoal/consensus/store"
)

// machine lets raft drive one shard's Store. Raft calls Update, PrepareSnapshot and
// RecoverFromSnapshot one at a time; everybody else reads the hub's View.
type machine struct {
	shard  uint64
	limits store.Limits
	store  atomic.Pointer[store.Store]
	hub    *hub
	clock  *clock
	// fault is told why the machine cannot go on. It is dead from then on: it changes
	// no more, answers nobody and makes no snapshot, until its replica is stopped.
	fault func(FaultKind, error)
	dead  atomic.Bool
	// applied is the index of the last entry that the hub's View shows; 0 if that came from a snapshot and nothing since.
	applied atomic.Uint64
	// logged is the size of the log entries since the last snapshot.
	logged atomic.Int64
}

func newMachine(shard uint64, limits store.Limits, c *clock) *machine {
	s := store.New(shard, limits)
	m := &machine{shard: shard, limits: limits, hub: newHub(s.View()), clock: c}
	m.store.Store(s)
	return m
}

// Update applies a batch of log entries. At an entry that cannot be taken the machine
// dies: to skip it would let this replica differ from the others. Its proposer then
// gets no result, so that it asks again elsewhere.
func (m *machine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	var events []store.Event
	s := m.store.Load()
	for i := range entries {
		if m.dead.Load() {
			continue
		}
		res, evs, err := m.apply(s, entries[i].Cmd)
		if err != nil {
			m.die(faultOf(err, FaultApply), fmt.Errorf("log entry %d of shard %d: %w", entries[i].Index, m.shard, err))
			continue
		}
		events = append(events, evs...)
		entries[i].Result = statemachine.Result{Data: store.AppendResult(nil, res)}
	}
	if m.dead.Load() {
		return entries, nil
	}
	m.count(entries)
	view := s.View()
	m.clock.observe(view.Revision())
	m.hub.publish(view, events)
	if n := len(entries); n > 0 {
		m.applied.Store(entries[n-1].Index)
	}
	return entries, nil
}

// count adds to what a start would have to apply again.
func (m *machine) count(entries []statemachine.Entry) {
	size := len(entries) * entryOverhead
	for i := range entries {
		size += len(entries[i].Cmd)
	}
	m.logged.Add(int64(size))
}

// apply applies one entry, of which a panic is no more than an error.
func (m *machine) apply(s *store.Store, cmd []byte) (res store.Result, events []store.Event, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, stackOf())
		}
	}()
	tx, err := store.DecodeTransaction(cmd)
	if err != nil {
		return res, nil, err
	}
	if len(tx.Ops) > 0 && bugs.Often(bugs.ForgetEntry, 50) {
		return store.Result{OK: true, Revision: tx.Stamp, Revisions: make([]store.Revision, len(tx.Ops))}, nil, nil
	}
	res, events = s.Apply(tx)
	return res, events, nil
}

func faultOf(err error, otherwise FaultKind) FaultKind {
	if errors.Is(err, store.ErrVersion) {
		return FaultVersion
	}
	return otherwise
}

func (m *machine) die(kind FaultKind, err error) {
	if m.dead.CompareAndSwap(false, true) {
		m.hub.close()
		m.fault(kind, err)
	}
}

// Lookup answers every query with the newest View.
func (m *machine) Lookup(any) (any, error) { return m.hub.current(), nil }

func (m *machine) PrepareSnapshot() (any, error) {
	m.logged.Store(0)
	return m.store.Load().View(), nil
}

func (m *machine) SaveSnapshot(at any, w io.Writer, _ statemachine.ISnapshotFileCollection, stop <-chan struct{}) error {
	if m.dead.Load() {
		return statemachine.ErrSnapshotStopped
	}
	err := at.(store.View).WriteSnapshot(stoppable{w, stop})
	if errors.Is(err, statemachine.ErrSnapshotStopped) {
		return statemachine.ErrSnapshotStopped
	}
	return err
}

func (m *machine) RecoverFromSnapshot(r io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	s, err := m.read(r)
	if err != nil {
		m.die(faultOf(err, FaultDamage), err)
		return nil // the replica is stopped; an error would end the process
	}
	m.store.Store(s)
	m.logged.Store(0)
	m.clock.observe(s.View().Revision())
	m.hub.reset(s.View())
	return nil
}

// read restores a store. dragonboat's reader panics at a block that does not match its
// checksum.
func (m *machine) read(r io.Reader) (s *store.Store, err error) {
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("%w of shard %d: %v", store.ErrSnapshot, m.shard, p)
		}
	}()
	return store.ReadSnapshot(r, m.shard, m.limits)
}

func (m *machine) Close() error {
	m.hub.close()
	return nil
}

// stoppable fails writes once its channel is closed.
type stoppable struct {
	w    io.Writer
	stop <-chan struct{}
}

func (s stoppable) Write(b []byte) (int, error) {
	select {
	case <-s.stop:
		return 0, statemachine.ErrSnapshotStopped
	default:
		return s.w.Write(b)
	}
}
