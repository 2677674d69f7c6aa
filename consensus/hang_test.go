package consensus_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/vfs"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// hangingDisk keeps every sync waiting for the gate, if it has one.
type hangingDisk struct{ gate atomic.Pointer[chan struct{}] }

func (d *hangingDisk) MaybeError(op vfs.Op) error {
	if gate := d.gate.Load(); op == vfs.OpSync && gate != nil {
		<-*gate
	}
	return nil
}

// TestADiskThatHangsKeepsNobodyWaitingForEver proposes without a deadline while the disk neither takes nor refuses anything, so that
// dragonboat, whose worker waits for it, has no timeouts any more.
func TestADiskThatHangsKeepsNobodyWaitingForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &hangingDisk{}
		h := consensustest.NewNetwork().Open(t, "a", "/shoal", func(c *consensus.Config) { c.FS = vfs.Wrap(vfs.NewMem(), disk) })
		consensustest.Found(t, h)
		mustPut(t, h, 1, "k", "v")
		gate := make(chan struct{})
		disk.gate.Store(&gate)
		begun := time.Now()
		_, err := h.Propose(context.Background(), 1, put("k", "w"))
		if took := time.Since(begun); !errors.Is(err, consensus.ErrUnknownOutcome) || took > 20*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		close(gate)
	})
}
