package consensus

import (
	"errors"
	"fmt"
	"io"

	"github.com/lni/dragonboat/v4/statemachine"

	"shoal/consensus/store"
)

// machine lets raft drive one shard's Store. Raft calls Update, PrepareSnapshot and
// RecoverFromSnapshot one at a time; everybody else reads the hub's View.
type machine struct {
	shard  uint64
	limits store.Limits
	store  *store.Store
	hub    *hub
	clock  *clock
}

func newMachine(shard uint64, limits store.Limits, c *clock) *machine {
	s := store.New(shard, limits)
	return &machine{shard: shard, limits: limits, store: s, hub: newHub(s.View()), clock: c}
}

// Update applies a batch of log entries. An entry that cannot be read stops the
// process: to skip it would let this replica differ from the others.
func (m *machine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	var events []store.Event
	for i := range entries {
		tx, err := store.DecodeTransaction(entries[i].Cmd)
		if err != nil {
			return nil, fmt.Errorf("shard %d: log entry %d: %w", m.shard, entries[i].Index, err)
		}
		res, evs := m.store.Apply(tx)
		events = append(events, evs...)
		entries[i].Result = statemachine.Result{Data: store.AppendResult(nil, res)}
	}
	view := m.store.View()
	m.clock.observe(view.Revision())
	m.hub.publish(view, events)
	return entries, nil
}

// Lookup answers every query with the newest View.
func (m *machine) Lookup(any) (any, error) { return m.hub.current(), nil }

func (m *machine) PrepareSnapshot() (any, error) { return m.store.View(), nil }

func (m *machine) SaveSnapshot(at any, w io.Writer, _ statemachine.ISnapshotFileCollection, stop <-chan struct{}) error {
	err := at.(store.View).WriteSnapshot(stoppable{w, stop})
	if errors.Is(err, statemachine.ErrSnapshotStopped) {
		return statemachine.ErrSnapshotStopped
	}
	return err
}

func (m *machine) RecoverFromSnapshot(r io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	s, err := store.ReadSnapshot(r, m.shard, m.limits)
	if err != nil {
		return err
	}
	m.store = s
	m.clock.observe(s.View().Revision())
	m.hub.reset(s.View())
	return nil
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
