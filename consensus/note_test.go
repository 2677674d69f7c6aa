package consensus

import (
	"sync"
	"testing"
	"time"

	"github.com/lni/vfs"
)

// TestNoFaultIsLost notes faults of several shards at the same moment.
func TestNoFaultIsLost(t *testing.T) {
	d, err := openDisk(vfs.NewMem(), "/store", "cluster", "peer")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	const shards = 16
	for shard := range uint64(shards) {
		all.Go(func() {
			if err := d.note(Fault{Shard: shard, Kind: FaultRaft, At: time.Now()}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(d.faults()); n != shards {
		t.Errorf("of %d faults %d are written down", shards, n)
	}
}
