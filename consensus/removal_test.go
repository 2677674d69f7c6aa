package consensus

import (
	"log/slog"
	"testing"

	"github.com/lni/vfs"
)

// TestADeletedReplicaStaysDeleted: whoever finds out that a replica was removed has looked at the records before, and the replica may have
// been deleted meanwhile. A record that came back could never be carried out: raft deletes nothing of a shard whose next replica runs.
func TestADeletedReplicaStaysDeleted(t *testing.T) {
	d, err := openDisk(vfs.NewMem(), "/store", "cluster", "peer")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, disk: d}
	old, next := diskReplica{Shard: 3, Replica: 4}, diskReplica{Shard: 3, Replica: 9}
	for _, r := range []diskReplica{old, next} {
		if err := d.put(r); err != nil {
			t.Fatal(err)
		}
	}
	h.expel(old)
	if got := d.replicas(); len(got) != 2 || !got[0].Removing || got[1].Removing {
		t.Errorf("while it is there: %+v", got)
	}
	if err := d.drop(old.Shard, old.Replica); err != nil {
		t.Fatal(err)
	}
	h.expel(old)
	if err := h.quarantine(old.Shard, old.Replica, "its log is damaged"); err != nil {
		t.Error(err)
	}
	if got := d.replicas(); len(got) != 1 || got[0] != next {
		t.Errorf("after it was deleted: %+v", got)
	}
	if err := h.quarantine(next.Shard, next.Replica, "its log is damaged"); err != nil {
		t.Error(err)
	}
	if got := d.replicas(); got[0].Quarantine == "" {
		t.Errorf("not quarantined: %+v", got)
	}
}
