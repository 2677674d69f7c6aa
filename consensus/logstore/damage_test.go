package logstore

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

func hostStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := open(vfs.Default, dir, options{segmentBytes: small, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDamageIsOneReplicasOwn flips a bit in what was written about one replica: it is named, and the others go on, now and after the file
// with the damage is gone.
func TestDamageIsOneReplicasOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := hostStore(t, dir)
	file := s.current().name
	var offset int64
	for i := range uint64(20) {
		if i == 10 {
			offset = s.current().size
		}
		u := update(node{i % 2, 1}, raftpb.State{Term: 1}, entry(i/2+1, 1, 100))
		if err := s.SaveRaftState([]raftpb.Update{u}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[offset+frameHeader+50] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s = hostStore(t, dir)
		var about *DamageError
		if err := s.check(node{0, 1}); !errors.As(err, &about) || about.Shard != 0 || about.Replica != 1 {
			t.Errorf("the damaged replica: %v", err)
		}
		if err := s.check(node{1, 1}); err != nil {
			t.Errorf("the other replica: %v", err)
		}
		read, _, err := s.IterateEntries(nil, 0, 1, 1, 1, 11, math.MaxUint64)
		if err != nil || len(read) != 10 {
			t.Errorf("the other replica: %d entries, %v", len(read), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamageIsNoticedWhileRunning: entries are checked again when they are read for a replica that lags.
func TestDamageIsNoticedWhileRunning(t *testing.T) {
	s := hostStore(t, filepath.Join(t.TempDir(), "store"))
	defer s.Close()
	if err := s.SaveRaftState([]raftpb.Update{update(node{3, 1}, raftpb.State{Term: 1}, entry(1, 1, 500))}, 1); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.current().name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 300); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.IterateEntries(nil, 0, 3, 1, 1, 2, math.MaxUint64); !errors.Is(err, ErrDamaged) {
		t.Errorf("read of a damaged entry: %v", err)
	}
}

// TestAFailedSyncIsFinal: after one, the kernel may have dropped what it could not write, so the store never says yes again.
func TestAFailedSyncIsFinal(t *testing.T) {
	inject := &failing{}
	s, err := open(vfs.Wrap(newDisk(), inject), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	inject.on = true
	if err := s.SaveRaftState([]raftpb.Update{update(node{1, 1}, raftpb.State{Term: 1}, entry(1, 1, 10))}, 1); !errors.Is(err, errDisk) {
		t.Fatalf("a failed sync: %v", err)
	}
	inject.on = false
	if err := s.SaveRaftState([]raftpb.Update{update(node{1, 1}, raftpb.State{Term: 1}, entry(2, 1, 10))}, 1); !errors.Is(err, errDisk) {
		t.Errorf("after a failed sync: %v", err)
	}
	if err := s.Close(); !errors.Is(err, errDisk) {
		t.Errorf("close after a failed sync: %v", err)
	}
}

var errDisk = errors.New("disk does not answer")

type failing struct{ on bool }

func (f *failing) MaybeError(op vfs.Op) error {
	if f.on && op == vfs.OpSync {
		return errDisk
	}
	return nil
}

// TestNobodyHearsOfAFailedWrite: with somebody to tell, the one who wrote does not go on, since it would acknowledge.
func TestNobodyHearsOfAFailedWrite(t *testing.T) {
	inject, told := &failing{}, make(chan error, 9)
	opts := quiet
	opts.failed = func(err error) { told <- err }
	s, err := open(vfs.Wrap(newDisk(), inject), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	inject.on = true
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_ = s.SaveRaftState([]raftpb.Update{update(node{1, 1}, raftpb.State{Term: 1}, entry(1, 1, 10))}, 1)
	}()
	if err := <-told; !errors.Is(err, errDisk) {
		t.Errorf("told: %v", err)
	}
	select {
	case <-returned:
		t.Error("the failed write returned")
	default:
	}
}

// FuzzOpen opens files of arbitrary bytes: an error or a store, but no panic and no memory beyond the file's size.
func FuzzOpen(f *testing.F) {
	dirOnHost := filepath.Join(f.TempDir(), "store")
	s := hostStore(f, dirOnHost)
	file := s.current().name
	for i := range uint64(3) {
		if err := s.SaveRaftState([]raftpb.Update{update(node{i % 2, 1}, raftpb.State{Term: 1}, entry(i/2+1, 1, 100))}, 1); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.TrimRight(content, "\x00"))
	f.Add(content[:2000])
	f.Fuzz(func(t *testing.T, content []byte) {
		fs := vfs.NewMem()
		if err := fs.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		w, err := fs.Create(segmentName(fs, dir, 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		s, err := open(fs, dir, quiet)
		if err != nil {
			return
		}
		nodes, err := s.ListNodeInfo()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			_, _, _ = s.IterateEntries(nil, 0, n.ShardID, n.ReplicaID, 1, 1000, math.MaxUint64)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
