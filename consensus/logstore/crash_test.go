package logstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
	"pgregory.net/rapid"

	"shoal/internal/polling"
)

const dir = "/data/log"

var quiet = options{segmentBytes: 4 << 10, log: slog.New(slog.DiscardHandler)}

func newDisk() *vfs.MemFS {
	fs := vfs.NewStrictMem()
	if err := errors.Join(fs.MkdirAll("/data", 0o700), syncPath(fs, "/")); err != nil {
		panic(err)
	}
	return fs
}

func syncPath(fs vfs.FS, path string) error {
	d, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// promised is what a replica has stored, in the plainest way.
type promised struct {
	bootstrap bool
	state     raftpb.State
	snapshot  uint64
	first     uint64
	entries   []raftpb.Entry
}

func (m *promised) last() uint64 { return m.first + uint64(len(m.entries)) - 1 }

// promises are what the log must hold.
type promises map[node]*promised

func (m promises) group(k node) *promised {
	g, ok := m[k]
	if !ok {
		g = &promised{first: 1}
		m[k] = g
	}
	return g
}

func (m promises) save(u raftpb.Update) {
	g := m.group(node{u.ShardID, u.ReplicaID})
	if !raftpb.IsEmptyState(u.State) {
		g.state = u.State
	}
	if u.Snapshot.Index > g.snapshot {
		g.snapshot, g.first, g.entries = u.Snapshot.Index, u.Snapshot.Index+1, nil
	}
	if n := len(u.EntriesToSave); n > 0 {
		g.entries = append(slices.Clone(g.entries[:u.EntriesToSave[0].Index-g.first]), u.EntriesToSave...)
	}
}

// compare reads everything back. After a crash the commit index alone may be older.
func (m promises) compare(t *rapid.T, l *Store, crashed bool) {
	var started []node
	for k, g := range m {
		if g.bootstrap {
			started = append(started, k)
		}
		compareGroup(t, l, k, g, crashed)
	}
	nodes, err := l.ListNodeInfo()
	if err != nil {
		t.Fatal(err)
	}
	var listed []node
	for _, n := range nodes {
		listed = append(listed, node{n.ShardID, n.ReplicaID})
	}
	less := func(a, b node) int { return bytes.Compare(fmt.Append(nil, a), fmt.Append(nil, b)) }
	slices.SortFunc(started, less)
	slices.SortFunc(listed, less)
	if !slices.Equal(started, listed) {
		t.Fatalf("started are %v, the log says %v", started, listed)
	}
}

func compareGroup(t *rapid.T, l *Store, k node, g *promised, crashed bool) {
	snapshot, err := l.GetSnapshot(k.shard, k.replica)
	if err != nil || snapshot.Index != g.snapshot {
		t.Fatalf("%v: snapshot %d, %v; want %d", k, snapshot.Index, err, g.snapshot)
	}
	state, err := l.ReadRaftState(k.shard, k.replica, g.snapshot)
	if raftpb.IsEmptyState(g.state) {
		if !errors.Is(err, raftio.ErrNoSavedLog) {
			t.Fatalf("%v: state of a group without one: %+v, %v", k, state, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("%v: %v", k, err)
	}
	want := g.state
	want.Commit = max(want.Commit, g.snapshot)
	if crashed && state.State.Commit < want.Commit && state.State.Commit >= g.snapshot {
		g.state.Commit, want.Commit = state.State.Commit, state.State.Commit
	}
	if state.State != want {
		t.Fatalf("%v: state %+v, want %+v", k, state.State, want)
	}
	first := max(g.first, g.snapshot)
	var expected []raftpb.Entry
	if first <= g.last() {
		expected = g.entries[first-g.first:]
		if state.FirstIndex != first {
			t.Fatalf("%v: first entry %d, want %d", k, state.FirstIndex, first)
		}
	}
	if state.EntryCount != uint64(len(expected)) {
		t.Fatalf("%v: %d entries, want %d", k, state.EntryCount, len(expected))
	}
	read, _, err := l.IterateEntries(nil, 0, k.shard, k.replica, first, first+uint64(len(expected)), math.MaxUint64)
	if err != nil || !slices.EqualFunc(read, expected, sameEntry) {
		t.Fatalf("%v: entries from %d on: %d read (%v), want %d", k, first, len(read), err, len(expected))
	}
}

func sameEntry(a, b raftpb.Entry) bool {
	return a.Index == b.Index && a.Term == b.Term && bytes.Equal(a.Cmd, b.Cmd)
}

// drawUpdate makes an update as raft would: entries follow or replace what is not committed, the commit index is in the log.
func drawUpdate(t *rapid.T, k node, g *promised, serial *uint64) raftpb.Update {
	u := raftpb.Update{ShardID: k.shard, ReplicaID: k.replica}
	state := g.state
	state.Term = max(state.Term, 1)
	last := g.last()
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0:
		state.Term, state.Vote = state.Term+1, rapid.Uint64Range(1, 3).Draw(t, "vote")
	case 1:
		u.Snapshot = raftpb.Snapshot{Index: last + rapid.Uint64Range(1, 20).Draw(t, "ahead"), Term: state.Term, ShardID: k.shard}
		last, state.Commit = u.Snapshot.Index, u.Snapshot.Index
	case 2: // only the commit index
	default:
		from := rapid.Uint64Range(max(state.Commit, g.snapshot)+1, last+1).Draw(t, "from")
		for range rapid.IntRange(1, 30).Draw(t, "entries") {
			*serial++
			size := rapid.IntRange(0, 300).Draw(t, "size")
			u.EntriesToSave = append(u.EntriesToSave, raftpb.Entry{Index: from, Term: state.Term, Cmd: append(fmt.Append(nil, *serial), make([]byte, size)...)})
			from++
		}
		last = from - 1
	}
	state.Commit = rapid.Uint64Range(max(state.Commit, g.snapshot), last).Draw(t, "commit")
	if rapid.IntRange(0, 9).Draw(t, "membership") == 0 {
		u.CommittedEntries = []raftpb.Entry{{Type: raftpb.ConfigChangeEntry}}
	}
	u.State = state
	return u
}

// step does one thing to log and model.
func step(t *rapid.T, l *Store, m promises, serial *uint64) {
	k := node{rapid.Uint64Range(0, 4).Draw(t, "shard"), rapid.Uint64Range(1, 2).Draw(t, "replica")}
	g := m.group(k)
	var err error
	switch rapid.IntRange(0, 19).Draw(t, "do") {
	case 0:
		g.bootstrap = true
		err = l.SaveBootstrapInfo(k.shard, k.replica, raftpb.Bootstrap{Join: true})
	case 1:
		if index := max(g.state.Commit, g.snapshot); index > g.snapshot && index >= g.first {
			g.snapshot = index
			err = l.SaveSnapshots([]raftpb.Update{{ShardID: k.shard, ReplicaID: k.replica, Snapshot: raftpb.Snapshot{Index: index, Term: g.state.Term}}})
		}
	case 2, 3:
		if g.snapshot >= g.first {
			index := rapid.Uint64Range(g.first, g.snapshot).Draw(t, "compact")
			err = l.RemoveEntriesTo(k.shard, k.replica, index)
			g.entries, g.first = slices.Clone(g.entries[min(index+1-g.first, uint64(len(g.entries))):]), index+1
		}
	case 4:
		if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
			delete(m, k)
			err = l.RemoveNodeData(k.shard, k.replica)
		}
	case 5:
		if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
			index := rapid.Uint64Range(1, 1000).Draw(t, "imported")
			m[k] = &promised{bootstrap: true, state: raftpb.State{Term: 7, Commit: index}, snapshot: index, first: index + 1}
			err = l.ImportSnapshot(raftpb.Snapshot{Type: raftpb.ConcurrentStateMachine, ShardID: k.shard, Index: index, Term: 7}, k.replica)
		}
	default:
		var updates []raftpb.Update
		for shard := range rapid.Uint64Range(1, 3).Draw(t, "groups") {
			k := node{shard, k.replica}
			u := drawUpdate(t, k, m.group(k), serial)
			updates = append(updates, u)
		}
		if err = l.SaveRaftState(updates, 1); err == nil {
			for _, u := range updates {
				m.save(u)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatIsPromisedSurvivesCrashes does what raft does, in random order, with restarts and crashes in between that lose whatever was not synced.
func TestWhatIsPromisedSurvivesCrashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs, m, serial := newDisk(), promises{}, uint64(0)
		reopen := func() *Store {
			l, err := open(fs, dir, quiet)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := reopen()
		defer func() { _ = l.Close() }()
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			step(t, l, m, &serial)
			switch rapid.IntRange(0, 19).Draw(t, "restart") {
			case 0:
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				l = reopen()
				m.compare(t, l, false)
			case 1:
				fs.SetIgnoreSyncs(true)
				_ = l.Close()
				fs.ResetToSyncedState()
				fs.SetIgnoreSyncs(false)
				l = reopen()
				// Compacting and removing a replica's data wait for nothing: what they dropped may be back, and is dropped again.
				m.redrop(t, l)
				m.compare(t, l, true)
			case 2:
				m.compare(t, l, false)
			}
		}
	})
}

// redrop repeats compactions that a crash may have undone.
func (m promises) redrop(t *rapid.T, l *Store) {
	for _, k := range slices.SortedFunc(maps.Keys(m), func(a, b node) int { return bytes.Compare(fmt.Append(nil, a), fmt.Append(nil, b)) }) {
		if m[k].first > 1 {
			if err := l.RemoveEntriesTo(k.shard, k.replica, m[k].first-1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestOldFilesGo: a group that never writes again does not keep the files of those that do.
func TestOldFilesGo(t *testing.T) {
	fs := newDisk()
	l, err := open(fs, dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	idle := raftpb.Update{ShardID: 1, ReplicaID: 1, State: raftpb.State{Term: 1, Commit: 2}, EntriesToSave: entries(1, 3, 100)}
	if err := l.SaveRaftState([]raftpb.Update{idle}, 1); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(500) {
		busy := raftpb.Update{ShardID: 2, ReplicaID: 1, State: raftpb.State{Term: 1, Commit: 10 * i}, EntriesToSave: entries(10*i+1, 10, 100)}
		snapshot := raftpb.Update{ShardID: 2, ReplicaID: 1, Snapshot: raftpb.Snapshot{Index: 10 * i, Term: 1}}
		err := errors.Join(l.SaveRaftState([]raftpb.Update{busy}, 2), l.SaveSnapshots([]raftpb.Update{snapshot}), l.RemoveEntriesTo(2, 1, 10*i))
		if err != nil {
			t.Fatal(err)
		}
	}
	// Hundreds of files were written, and they go in the background.
	polling.Until(t, time.Millisecond, 10*time.Second, "few files are left", func(context.Context) error {
		if n := len(segmentFiles(t, fs)); n > 8 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = open(fs, dir, quiet); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read, _, err := l.IterateEntries(nil, 0, 1, 1, 1, 4, math.MaxUint64)
	if err != nil || !slices.EqualFunc(read, idle.EntriesToSave, sameEntry) {
		t.Errorf("the idle group's entries: %v, %v", read, err)
	}
}

func entries(from uint64, n, size int) []raftpb.Entry {
	all := make([]raftpb.Entry, n)
	for i := range all {
		all[i] = raftpb.Entry{Index: from + uint64(i), Term: 1, Cmd: bytes.Repeat([]byte{'e'}, size)}
	}
	return all
}

func segmentFiles(t *testing.T, fs vfs.FS) []string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
	}
	return names
}
