package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lni/vfs"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

// fails waits until the host reports that it cannot go on.
func fails(t *testing.T, h *consensus.Host) consensus.Fault {
	t.Helper()
	err := h.Failed(within(t, patience))
	var f consensus.Fault
	if !errors.As(err, &f) {
		t.Fatalf("the host goes on: %v", err)
	}
	return f
}

// renewed waits until the host has another replica of the shard than it had, voting and with the data.
func renewed(t *testing.T, h *consensus.Host, shard, than uint64, key, value string) {
	t.Helper()
	eventually(t, "the replica is replaced", func() error {
		s := status(h, shard)
		if !s.Local || !s.Voter || s.ReplicaID == than || s.Quarantine != "" {
			return fmt.Errorf("shard %d is %+v", shard, s)
		}
		view, ok := h.Local(shard)
		if !ok {
			return errors.New("not ready")
		}
		if kv, _ := view.Get(key); string(kv.Value) != value {
			return fmt.Errorf("it holds %q", kv.Value)
		}
		return nil
	})
}

// TestAPanicOfTheStateMachineStopsOneReplica breaks one replica's machine for real. The host goes on, the replica comes back from its
// log, and when that happens too often it is quarantined and replaced.
func TestAPanicOfTheStateMachineStopsOneReplica(t *testing.T) {
	_, hosts, _ := trio(t, nil)
	mustPut(t, hosts["a"], 1, "k", "before")
	c := hosts["c"]
	id := status(c, 1).ReplicaID
	for round := range consensus.FaultLimit {
		eventually(t, "c is ready", func() error {
			if _, ok := c.Local(1); !ok {
				return errors.New("not ready")
			}
			return nil
		})
		if err := consensus.BreakMachine(c, 1); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint("round ", round)
		mustPut(t, hosts["a"], 1, "k", want)
		mustGet(t, c, 1, "k", want) // from wherever; never the broken machine's old value
		mustPut(t, c, 0, "other", want)
		eventually(t, "the fault is written down", func() error {
			if n := len(consensus.Faults(c)); n <= round {
				return fmt.Errorf("%d faults", n)
			}
			return nil
		})
	}
	renewed(t, c, 1, id, "k", fmt.Sprint("round ", consensus.FaultLimit-1))
	if err := c.Failed(within(t, time.Millisecond)); err != nil {
		t.Errorf("the host failed: %v", err)
	}
}

// TestAnUnreadableEntryStopsItsShardOnly puts garbage into the log of one shard, which no replica can take.
func TestAnUnreadableEntryStopsItsShardOnly(t *testing.T) {
	network, hosts, dirs := trio(t, nil)
	mustPut(t, hosts["a"], 1, "k", "v")
	garbage := store.AppendTransaction(nil, put("k", "w"))
	go consensus.ProposeRaw(hosts["a"], 1, garbage[:len(garbage)-3]) //nolint:errcheck // whatever it says, nobody can take it
	for name, h := range hosts {
		eventually(t, name+" quarantines its replica", func() error {
			if s := status(h, 1); s.Local || s.Quarantine == "" || s.Trouble == "" {
				return fmt.Errorf("shard 1 is %+v", s)
			}
			return nil
		})
	}
	if _, err := hosts["b"].Propose(within(t, time.Second), 1, put("k", "w")); err == nil {
		t.Error("a write to the shard succeeded")
	}
	mustPut(t, hosts["b"], 0, "other", "v")
	if err := hosts["b"].Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	b := network.Open(t, "b", dirs["b"], nil)
	if s := status(b, 1); s.Local || !strings.Contains(s.Quarantine, "log entry") {
		t.Errorf("after a restart: %+v", s)
	}
	mustGet(t, b, 0, "other", "v")
}

// TestANewerEntryKeepsThePeerDown puts an entry of a later version into the log.
func TestANewerEntryKeepsThePeerDown(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	mustPut(t, h, 1, "k", "v")
	newer := store.AppendTransaction(nil, put("k", "from the future"))
	newer[0] = 99
	go consensus.ProposeRaw(h, 1, newer) //nolint:errcheck // nobody can take it
	for range consensus.FaultLimit + 1 {
		f := fails(t, h)
		if f.Kind != consensus.FaultVersion || f.Shard != 1 || !strings.Contains(f.Error(), "version 99") || !strings.Contains(f.Error(), "log entry") {
			t.Fatalf("%+v", f)
		}
		if err := h.Shutdown(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		h = network.Open(t, "a", dir, nil)
	}
}

// TestADamagedSnapshotIsNamedAndReplaced flips one bit of a snapshot file while its host is down.
func TestADamagedSnapshotIsNamedAndReplaced(t *testing.T) {
	network, hosts, dirs := trio(t, func(c *consensus.Config) { c.SnapshotEntries = 20 })
	for i := range 100 {
		mustPut(t, hosts["a"], 1, "k", fmt.Sprint(i))
	}
	c := hosts["c"]
	id := status(c, 1).ReplicaID
	var files []string
	eventually(t, "c makes a snapshot", func() (err error) {
		pattern := filepath.Join(dirs["c"], "raft", "*", "*", "snapshot-part-*", fmt.Sprintf("snapshot-1-%d", id), "*", "*.gbsnap")
		if files, err = filepath.Glob(pattern); err == nil && len(files) == 0 {
			err = errors.New("no snapshot")
		}
		return err
	})
	if err := c.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	files, _ = filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(files[0])), "*", "*.gbsnap")) //nolint:errcheck // the pattern is good
	for _, file := range files {
		flip(t, file, 1024+40)
	}
	c = network.Open(t, "c", dirs["c"], nil)
	renewed(t, c, 1, id, "k", "99")
	faults := consensus.Faults(c)
	if len(faults) == 0 || faults[0].Kind != consensus.FaultDamage || !strings.Contains(faults[0].What, ".gbsnap") || !strings.Contains(faults[0].What, "checksum") {
		t.Errorf("%+v", faults)
	}
	if status(c, 0).ReplicaID != 3 {
		t.Errorf("the other shard's replica was replaced too: %+v", status(c, 0))
	}
}

func flip(t *testing.T, file string, at int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 4
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTheOnlyCopyIsNotThrownAway damages the log of a host that is alone: what it acknowledged is missing, so it serves the other shards
// and leaves this one alone.
func TestTheOnlyCopyIsNotThrownAway(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	mustPut(t, h, 2, "k", "v")
	logs := func() []string {
		files, err := filepath.Glob(filepath.Join(dir, "raft", "*", "*", "logstore", "*.segment"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		return files
	}
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	// Once more, so that the last file ends in shard 1's writes alone: all shards have elected.
	h = network.Open(t, "a", dir, nil)
	for shard := range uint64(3) {
		if _, _, _, err := h.Get(within(t, patience), shard, "k", consensus.Linearizable); err != nil {
			t.Fatal(err)
		}
	}
	newest := logs()[len(logs())-1]
	before, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		mustPut(t, h, 1, "k", fmt.Sprint(i))
	}
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(newest, int64(len(strings.TrimRight(string(before), "\x00")))); err != nil {
		t.Fatal(err)
	}
	h = network.Open(t, "a", dir, nil)
	mustGet(t, h, 2, "k", "v")
	eventually(t, "the shard is left alone", func() error {
		if s := status(h, 1); s.Local || !strings.Contains(s.Quarantine, "acknowledged") || !strings.Contains(s.Trouble, "recover") {
			return fmt.Errorf("shard 1 is %+v", s)
		}
		return nil
	})
	if _, _, _, err := h.Get(within(t, time.Second), 1, "k", consensus.Local); err == nil {
		t.Error("the damaged shard answers")
	}
}

// failingDisk fails every sync once told to.
type failingDisk struct{ broken atomic.Bool }

var errNoDisk = errors.New("input/output error")

func (f *failingDisk) MaybeError(op vfs.Op) error {
	if op == vfs.OpSync && f.broken.Load() {
		return errNoDisk
	}
	return nil
}

// TestAFailedSyncEndsTheHostInOrder lets fsync fail under writes: nothing is acknowledged any more, the host says why and ends within a
// bound, and all that was acknowledged is there on a disk that works.
func TestAFailedSyncEndsTheHostInOrder(t *testing.T) {
	disk := &failingDisk{}
	dir := t.TempDir()
	open := func() *consensus.Host {
		return consensustest.NewNetwork().Open(t, "a", dir, func(c *consensus.Config) { c.FS = vfs.Wrap(vfs.Default, disk) })
	}
	h := open()
	consensustest.Found(t, h)
	acknowledged := 0
	for i := range 50 {
		if i == 30 {
			disk.broken.Store(true)
		}
		if _, err := h.Propose(within(t, 500*time.Millisecond), 1, put("k", fmt.Sprint(i))); err != nil {
			break
		}
		acknowledged = i
	}
	if acknowledged >= 30 {
		t.Errorf("write %d was acknowledged on a disk that does not sync", acknowledged)
	}
	if f := fails(t, h); f.Kind != consensus.FaultDisk || !strings.Contains(f.Error(), errNoDisk.Error()) {
		t.Errorf("%v", f)
	}
	begun := time.Now()
	if err := h.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	disk.broken.Store(false)
	crashed := t.TempDir() // the old host still holds the folder's locks
	if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	dir = crashed
	kv, found, _, err := open().Get(within(t, patience), 1, "k", consensus.Linearizable)
	if got := string(kv.Value); err != nil || !found || (got != fmt.Sprint(acknowledged) && got != "30") {
		t.Errorf("%d was acknowledged, %q is there: %v", acknowledged, got, err)
	}
}

func TestForeignSettingsAreRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	name := "dragonboat-soft-settings.json"
	if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := consensus.Open(context.Background(), consensustest.NewNetwork().Config("a", t.TempDir()))
	if err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("opened in a folder with %s: %v", name, err)
	}
}

// TestAFailedHostKeepsNobodyWaiting: raft stands still in a host that has failed, and the process ends only when its requests have.
func TestAFailedHostKeepsNobodyWaiting(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	mustPut(t, hosts["a"], 1, "k", "v")
	network.Cut("a", "b")
	network.Cut("a", "c")
	ended := make(chan error, 2)
	go func() {
		_, _, _, err := hosts["a"].Get(t.Context(), 1, "k", consensus.Linearizable)
		ended <- err
	}()
	go func() {
		_, err := hosts["a"].Propose(t.Context(), 1, put("k", "w"))
		ended <- err
	}()
	eventually(t, "a knows no leader, and both wait for one", func() error {
		if s := status(hosts["a"], 1); s.Leader != "" {
			return fmt.Errorf("it follows %s", s.Leader)
		}
		return nil
	})
	consensus.Fail(hosts["a"])
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, consensus.ErrClosed) {
				t.Errorf("a request ended with: %v", err)
			}
		case <-time.After(3 * time.Second): // of the ten that it waits for a quorum
			t.Fatal("a request goes on")
		}
	}
}
