package consensus_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// TestSnapshotsFollowTheSizeOfTheLog writes few but large entries: a snapshot comes long before there are many. A start then shows what
// was written before and after it.
func TestSnapshotsFollowTheSizeOfTheLog(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	one := func(c *consensus.Config) { c.DataShards = 1 }
	h := network.Open(t, "a", dir, one)
	consensustest.Found(t, h)
	large := strings.Repeat("x", 1<<20)
	for i := range 20 {
		mustPut(t, h, 1, "k", fmt.Sprint(i)+large)
	}
	snapshots := func(shard int) ([]string, error) {
		return filepath.Glob(filepath.Join(dir, "raft", "*", "*", "snapshot-part-*", fmt.Sprintf("snapshot-%d-*", shard), "*", "*.gbsnap"))
	}
	eventually(t, "a snapshot is made", func() error {
		files, err := snapshots(1)
		if err == nil && len(files) == 0 {
			err = errors.New("no snapshot")
		}
		return err
	})
	if files, err := snapshots(0); err != nil || len(files) > 0 {
		t.Errorf("the other shard made %v, %v", files, err)
	}
	mustPut(t, h, 1, "later", "v")
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	h = network.Open(t, "a", dir, one)
	for key, want := range map[string]string{"k": "19" + large, "later": "v"} {
		kv, _, _, err := h.Get(within(t, patience), 1, key, consensus.Linearizable)
		if err != nil || string(kv.Value) != want {
			t.Errorf("%s after the start: %d bytes, want %d; %v", key, len(kv.Value), len(want), err)
		}
	}
}
