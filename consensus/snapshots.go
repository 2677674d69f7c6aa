package consensus

import (
	"context"
	"time"

	"github.com/lni/dragonboat/v4"
)

// When a replica makes a snapshot: once its log since the last one is as large as its
// state, but not before leastLogged. What is written for snapshots is then at most as
// much again as for the log, and a start reads at most twice the state. Counting
// entries instead, as dragonboat can, made a snapshot of 300 MB for 3 MB of log in one
// shard, and let another replay a gigabyte.
const (
	leastLogged = 16 << 20
	// entryOverhead is what applying an entry costs beside its bytes, as such.
	entryOverhead = 256
	// snapshotLook is how often a replica is looked at, snapshotTimeout how long one
	// snapshot may take.
	snapshotLook    = time.Second
	snapshotTimeout = 5 * time.Minute
	// keptEntries are kept of the log behind a snapshot, for replicas that lag a little.
	keptEntries = 2000
)

// compactionOverhead is the number of entries that stay in the log behind a snapshot.
func compactionOverhead(snapshotEntries uint64) uint64 {
	if snapshotEntries == 0 {
		return keptEntries
	}
	return snapshotEntries / 5
}

// snapshotDue says whether a replica with so large a log and state is to make a snapshot.
func snapshotDue(logged, size int64) bool { return logged >= max(leastLogged, size) }

// makeSnapshots makes the replica's snapshots until ctx ends.
func (h *Host) makeSnapshots(ctx context.Context, r *replica) {
	look := time.NewTicker(snapshotLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		m := r.machine.Load()
		if m == nil || !r.ready.Load() || !snapshotDue(m.logged.Load(), m.hub.current().Size()) {
			continue
		}
		if err := h.makeSnapshot(ctx, r); err != nil && ctx.Err() == nil {
			h.cfg.Logger.Debug("no snapshot for now", "shard", r.shard, "err", err)
		}
	}
}

// makeSnapshot has raft make a snapshot and waits for it. One that is refused, because
// another is under way or nothing is new, is none to wait for.
func (h *Host) makeSnapshot(ctx context.Context, r *replica) error {
	request, err := h.nh.RequestSnapshot(r.shard, dragonboat.SnapshotOption{}, snapshotTimeout)
	if err != nil {
		return err
	}
	select {
	case <-request.ResultC():
		request.Release()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.ctx.Done():
		return ErrClosed
	}
}
