package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"pgregory.net/rapid"
)

type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// small segments let tests see several of them, large ones keep everything in one.
const small, large = 64 << 10, 4 << 20

func openAt(dir string, segment int64, failed func(error)) (*Factory, *Store, error) {
	f := &Factory{Failed: failed, Logger: slog.New(slog.DiscardHandler), SegmentBytes: segment}
	var cfg config.NodeHostConfig
	db, err := f.Create(cfg, nil, []string{dir}, []string{dir})
	if err != nil {
		return f, nil, err
	}
	return f, db.(*Store), nil
}

func mustOpen(t failer, dir string) (*Factory, *Store) {
	t.Helper()
	f, s, err := openAt(dir, small, func(err error) {
		if !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, s
}

func entry(index, term uint64, size int) raftpb.Entry {
	return raftpb.Entry{Index: index, Term: term, Cmd: fmt.Appendf(make([]byte, size), "%d in %d", index, term)}
}

func update(n node, state raftpb.State, entries ...raftpb.Entry) raftpb.Update {
	return raftpb.Update{ShardID: n.shard, ReplicaID: n.replica, State: state, EntriesToSave: entries}
}

// model is what a replica has been promised to hold.
type model struct {
	state           raftpb.State
	entries         []raftpb.Entry
	snapshot, floor uint64
}

func (m *model) last() uint64 {
	if len(m.entries) == 0 {
		return m.snapshot
	}
	return m.entries[len(m.entries)-1].Index
}

func (m *model) append(entries []raftpb.Entry) {
	for _, e := range entries {
		for len(m.entries) > 0 && m.last() >= e.Index {
			m.entries = m.entries[:len(m.entries)-1]
		}
		m.entries = append(m.entries, e)
	}
}

// matches compares what the store gives with what was acknowledged.
func (m *model) matches(s *Store, n node) error {
	info, err := s.GetBootstrapInfo(n.shard, n.replica)
	if err != nil {
		return err
	}
	if info.Type != raftpb.ConcurrentStateMachine {
		return fmt.Errorf("bootstrap %+v", info)
	}
	snapshot, err := s.GetSnapshot(n.shard, n.replica)
	if err != nil {
		return err
	}
	if snapshot.Index != m.snapshot {
		return fmt.Errorf("snapshot %d, want %d", snapshot.Index, m.snapshot)
	}
	state, err := s.ReadRaftState(n.shard, n.replica, snapshot.Index)
	if err != nil {
		return err
	}
	if state.State.Term != m.state.Term || state.State.Vote != m.state.Vote {
		return fmt.Errorf("state %+v, want %+v", state.State, m.state)
	}
	if last := state.FirstIndex + state.EntryCount - 1; state.EntryCount > 0 && last != m.last() {
		return fmt.Errorf("last entry %d, want %d", last, m.last())
	}
	got, _, err := s.IterateEntries(nil, 0, n.shard, n.replica, m.floor+1, m.last()+1, 1<<40)
	if err != nil {
		return err
	}
	var want []raftpb.Entry
	for _, e := range m.entries {
		if e.Index > m.floor {
			want = append(want, e)
		}
	}
	same := func(a, b raftpb.Entry) bool {
		return a.Index == b.Index && a.Term == b.Term && string(a.Cmd) == string(b.Cmd)
	}
	if !slices.EqualFunc(got, want, same) {
		return fmt.Errorf("%d entries, want %d from %d to %d", len(got), len(want), m.floor+1, m.last())
	}
	return nil
}

// TestStoreAgreesWithTheModel drives the store as raft does, over restarts.
func TestStoreAgreesWithTheModel(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "*")
		if err != nil {
			t.Fatal(err)
		}
		_, s := mustOpen(t, dir)
		nodes := []node{{1, 1}, {1, 2}, {7, 1}}
		models := map[node]*model{}
		for _, n := range nodes {
			if _, err := s.GetBootstrapInfo(n.shard, n.replica); !errors.Is(err, raftio.ErrNoBootstrapInfo) {
				t.Fatal(err)
			}
			if err := s.SaveBootstrapInfo(n.shard, n.replica, raftpb.Bootstrap{Type: raftpb.ConcurrentStateMachine}); err != nil {
				t.Fatal(err)
			}
			models[n] = &model{state: raftpb.State{Term: 1, Vote: 1}}
			if err := s.SaveRaftState([]raftpb.Update{update(n, models[n].state, entry(1, 1, 10))}, 1); err != nil {
				t.Fatal(err)
			}
			models[n].append([]raftpb.Entry{entry(1, 1, 10)})
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var updates []raftpb.Update
				for _, n := range nodes {
					if !rapid.Bool().Draw(t, "takes part") {
						continue
					}
					m := models[n]
					if rapid.Bool().Draw(t, "new term") {
						m.state.Term++
						m.state.Vote = rapid.Uint64Range(0, 3).Draw(t, "vote")
					}
					from := rapid.Uint64Range(max(m.snapshot, m.floor, m.state.Commit)+1, m.last()+1).Draw(t, "from")
					var entries []raftpb.Entry
					for i := range rapid.Uint64Range(1, 5).Draw(t, "count") {
						entries = append(entries, entry(from+i, m.state.Term, rapid.SampledFrom([]int{1, 100, 40_000}).Draw(t, "size")))
					}
					m.append(entries)
					updates = append(updates, update(n, m.state, entries...))
				}
				if err := s.SaveRaftState(updates, 2); err != nil {
					t.Fatal(err)
				}
			},
			"commit": func(t *rapid.T) {
				n := rapid.SampledFrom(nodes).Draw(t, "replica")
				models[n].state.Commit = models[n].last()
				if err := s.SaveRaftState([]raftpb.Update{update(n, models[n].state)}, 1); err != nil {
					t.Fatal(err)
				}
			},
			"own snapshot": func(t *rapid.T) {
				n := rapid.SampledFrom(nodes).Draw(t, "replica")
				m := models[n]
				m.snapshot = rapid.Uint64Range(m.snapshot, m.last()).Draw(t, "at")
				u := raftpb.Update{ShardID: n.shard, ReplicaID: n.replica, Snapshot: raftpb.Snapshot{Index: m.snapshot, Term: 1}}
				if err := s.SaveSnapshots([]raftpb.Update{u}); err != nil {
					t.Fatal(err)
				}
				m.floor = max(m.floor, rapid.Uint64Range(0, m.snapshot).Draw(t, "floor"))
				if err := s.RemoveEntriesTo(n.shard, n.replica, m.floor); err != nil {
					t.Fatal(err)
				}
				done, err := s.CompactEntriesTo(n.shard, n.replica, m.floor)
				if err != nil {
					t.Fatal(err)
				}
				<-done
			},
			"leader's snapshot": func(t *rapid.T) {
				n := rapid.SampledFrom(nodes).Draw(t, "replica")
				m := models[n]
				m.snapshot = m.last() + rapid.Uint64Range(1, 9).Draw(t, "ahead")
				m.floor, m.entries, m.state.Commit = m.snapshot, nil, m.snapshot
				u := update(n, m.state)
				u.Snapshot = raftpb.Snapshot{Index: m.snapshot, Term: 1}
				if err := s.SaveRaftState([]raftpb.Update{u}, 1); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				_, s = mustOpen(t, dir)
			},
			"": func(t *rapid.T) {
				for n, m := range models {
					if err := m.matches(s, n); err != nil {
						t.Fatalf("%v: %v", n, err)
					}
				}
			},
		})
		infos, err := s.ListNodeInfo()
		if err != nil || len(infos) != len(nodes) {
			t.Fatalf("%v, %v", infos, err)
		}
		gone := nodes[0]
		if err := s.RemoveNodeData(gone.shard, gone.replica); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetBootstrapInfo(gone.shard, gone.replica); !errors.Is(err, raftio.ErrNoBootstrapInfo) {
			t.Fatalf("a removed replica: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		os.RemoveAll(dir) //nolint:errcheck // the test's folder goes anyway
	})
}

// filled makes a store with flushed tables and logs, and says what it acknowledged.
func filled(t failer, dir string) map[node]*model {
	t.Helper()
	_, s := mustOpen(t, dir)
	models := map[node]*model{}
	for shard := range uint64(3) {
		n := node{shard, shard + 1}
		m := &model{state: raftpb.State{Term: 3, Vote: shard + 1}}
		models[n] = m
		if err := s.SaveBootstrapInfo(n.shard, n.replica, raftpb.Bootstrap{Type: raftpb.ConcurrentStateMachine}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(120) {
		for _, n := range slices.SortedFunc(maps.Keys(models), func(a, b node) int { return int(a.shard) - int(b.shard) }) {
			m := models[n]
			if n.shard == 2 && i > 20 {
				continue // a shard that fell idle: what it has lies in old files
			}
			e := []raftpb.Entry{entry(i+1, 3, 1000)}
			m.state.Commit = i
			m.append(e)
			if err := s.SaveRaftState([]raftpb.Update{update(n, m.state, e...)}, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return models
}

// TestDamageIsNeverServed flips bits in, zeroes and cuts every kind of file: what was acknowledged is read back, or the damage is named.
func TestDamageIsNeverServed(t *testing.T) {
	original := t.TempDir()
	models := filled(t, original)
	scratch := t.TempDir()
	served, named, kinds := 0, 0, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(scratch, "*")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.CopyFS(dir, os.DirFS(original)); err != nil {
			t.Fatal(err)
		}
		inner := filepath.Join(dir, storeFolder)
		files, err := os.ReadDir(inner)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			if info, err := f.Info(); err == nil && info.Size() > 0 && f.Name() != marksFile {
				names = append(names, f.Name())
			}
		}
		name := rapid.SampledFrom(names).Draw(t, "file")
		damageFile(t, filepath.Join(inner, name))
		kind := "named"
		if err := checkAll(dir, models); err == nil {
			served++
			kind = "served"
		} else {
			named++
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		kinds[strings.TrimLeft(filepath.Ext(name), ".")+" "+kind]++
	})
	if named == 0 || served == 0 {
		t.Errorf("%d times named, %d times served: the test sees one side only", named, served)
	}
	t.Logf("%d times what was acknowledged was there, %d times the damage was named: %v", served, named, kinds)
}

func damageFile(t *rapid.T, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := rapid.IntRange(0, len(b)-1).Draw(t, "offset")
	switch rapid.SampledFrom([]string{"flip", "flip", "zero", "cut", "garbage"}).Draw(t, "damage") {
	case "flip":
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case "zero":
		clear(b[at:min(len(b), at+rapid.IntRange(1, 5000).Draw(t, "length"))])
	case "cut":
		b = b[:at]
	case "garbage":
		r := rand.New(rand.NewPCG(uint64(at), 1))
		for i := at; i < min(len(b), at+600); i++ {
			b[i] = byte(r.Uint32())
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkAll opens a store and reads everything. A nil error means that all that was acknowledged is there.
func checkAll(dir string, models map[node]*model) error {
	f, s, err := openAt(dir, small, func(error) {})
	if err != nil {
		return err
	}
	var failed []error
	for n, m := range models {
		if err := f.Check(n.shard, n.replica); err != nil {
			failed = append(failed, err)
			continue
		}
		err := m.matches(s, n)
		if err != nil && !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("replica %v passed the check and is wrong: %w", n, err)
		}
		failed = append(failed, err)
	}
	for _, err := range failed {
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
	}
	return errors.Join(append(failed, s.Close())...)
}

// TestTornTailIsNotDamage crashes a process in the middle of a write that nobody was told of: it is forgotten without a word.
func TestTornTailIsNotDamage(t *testing.T) {
	original := t.TempDir()
	models := filled(t, original)
	inner := filepath.Join(original, storeFolder)
	logs, err := filepath.Glob(filepath.Join(inner, "*.segment"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	acknowledged, err := os.ReadFile(filepath.Join(inner, marksFile))
	if err != nil {
		t.Fatal(err)
	}
	// One more write, whose mark is taken back: as if the process had died before it was written.
	_, s, err := openAt(original, large, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	logs, _ = filepath.Glob(filepath.Join(inner, "*.segment")) //nolint:errcheck // the pattern is good
	newest := logs[len(logs)-1]
	before, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	begin := len(bytes.TrimRight(before, "\x00"))
	n := node{0, 1}
	if err := s.SaveRaftState([]raftpb.Update{update(n, models[n].state, entry(121, 3, 100_000))}, 1); err != nil {
		t.Fatal(err)
	}
	crashed := t.TempDir()
	if err := os.CopyFS(crashed, os.DirFS(original)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	newest = filepath.Join(crashed, storeFolder, filepath.Base(newest))
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 10, 5000, 32 << 10, 40_000, 99_000} {
		for _, tail := range [][]byte{nil, make([]byte, 10_000)} {
			if size += begin; tail != nil {
				size = max(size/sector*sector, begin) // disk and kernel write whole sectors
			}
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(crashed)); err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{filepath.Base(newest): append(slices.Clip(whole[:size]), tail...), marksFile: acknowledged}
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(dir, storeFolder, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := checkAll(dir, models); err != nil {
				t.Errorf("torn after %d bytes, %d zeros behind: %v", size, len(tail), err)
			}
		}
	}
}

// TestLostAcknowledgementIsNamed cuts the very last record off, which pebble takes for a torn tail.
func TestLostAcknowledgementIsNamed(t *testing.T) {
	dir := t.TempDir()
	models := filled(t, dir)
	_, s := mustOpen(t, dir)
	n := node{1, 2}
	if err := s.SaveRaftState([]raftpb.Update{update(n, raftpb.State{Term: 4, Vote: 1})}, 1); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, storeFolder, "*.segment"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(logs[len(logs)-1], 0); err != nil {
		t.Fatal(err)
	}
	var about *DamageError
	if err := checkAll(dir, models); !errors.As(err, &about) || about.Shard != 1 || about.Replica != 2 {
		t.Errorf("a forgotten vote: %v", err)
	}
}

// TestMarksOutliveDamage flips bits in the marks: the log opens in any case, since it is the marks that are wrong.
func TestMarksOutliveDamage(t *testing.T) {
	original := t.TempDir()
	models := filled(t, original)
	file := filepath.Join(original, storeFolder, marksFile)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		damageFile(t, file)
		if err := checkAll(original, models); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	})
}
