package peer

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shoal/consensus"
)

// A duty that takes long to end must not keep others from ending, and two of one shard must never run at once.
func TestALostDutyEndsAtOnceAndNeverRunsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running [2]atomic.Int32
		d := &duties{log: slog.New(slog.DiscardHandler), running: map[uint64]*duty{}, start: func(shard uint64) func(context.Context) error {
			return func(ctx context.Context) error {
				if n := running[shard].Add(1); n > 1 {
					t.Errorf("%d duties of shard %d run at once", n, shard)
				}
				defer running[shard].Add(-1)
				<-ctx.Done()
				if shard == 0 {
					time.Sleep(10 * time.Second) // its controllers finish what they are doing
				}
				return nil
			}
		}}
		for shard := range uint64(2) {
			d.set(t.Context(), consensus.Leadership{Shard: shard, Leader: true, Term: 1})
		}
		synctest.Wait()
		begun := time.Now()
		d.set(t.Context(), consensus.Leadership{Shard: 0, Term: 2})
		d.set(t.Context(), consensus.Leadership{Shard: 1, Term: 2})
		synctest.Wait()
		if time.Since(begun) != 0 || running[1].Load() != 0 {
			t.Fatalf("the duty of shard 1 waited %s for that of shard 0", time.Since(begun))
		}
		d.set(t.Context(), consensus.Leadership{Shard: 0, Leader: true, Term: 3})
		synctest.Wait()
		time.Sleep(11 * time.Second)
		if running[0].Load() != 1 {
			t.Fatalf("%d duties of shard 0 run after it was regained, want 1", running[0].Load())
		}
		d.endAll()
	})
}
