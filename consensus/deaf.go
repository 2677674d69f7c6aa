package consensus

import (
	"context"
	"time"
)

// deafAfter is how long a non-voting copy may know no leader before its leader does something about it.
const deafAfter = 2 * time.Second

// hearing is what a leader knows about the non-voting copies of a shard whose only voter it is.
type hearing struct {
	change uint64 // of the membership
	deaf   time.Time
	heard  bool
}

// wakeDeaf makes the only voter of a shard be heard by its non-voting copies.
//
// When a shard shrinks to one voter, a read that the former fellow voter was to confirm may be under way. Nobody confirms it any more, so
// raft keeps it pending for ever, and as long as any read is pending, heartbeats go to voters only (dragonboat, raft.go,
// broadcastHeartbeatMessageWithHint). A copy that is added then hears of no leader and stays empty. Such a read ends when the leader's
// replica is started anew, which costs the shard one election of one.
func (h *Host) wakeDeaf(ctx context.Context, r *replica, m membership) error {
	was := h.hearings[r.shard]
	if len(m.Voters) != 1 || len(m.NonVoters) == 0 || (was.heard && was.change == m.Change) {
		return nil
	}
	if was.change != m.Change {
		was = hearing{change: m.Change}
	}
	deaf, answered := false, true
	for id, peer := range m.NonVoters {
		status, err := h.statusAt(ctx, peer, r.shard)
		if err != nil || !status.Local || status.ReplicaID != id {
			answered = false // down, or not there yet
			continue
		}
		deaf = deaf || status.Leader == ""
	}
	switch {
	case !deaf:
		was.deaf, was.heard = time.Time{}, answered
	case was.deaf.IsZero():
		was.deaf = time.Now()
	case time.Since(was.deaf) > deafAfter:
		h.cfg.Logger.Warn("a copy does not hear its leader, whose replica is started anew", "shard", r.shard, "replica", r.id)
		delete(h.hearings, r.shard)
		return h.restartReplica(r)
	}
	h.hearings[r.shard] = was
	return nil
}

func (h *Host) restartReplica(r *replica) error {
	for _, d := range h.disk.replicas() {
		if d.Shard != r.shard || d.Replica != r.id || d.Removing {
			continue
		}
		if err := h.stopReplica(d.Shard, d.Replica); err != nil {
			return err
		}
		if err := h.startReplica(d); err != nil {
			h.cfg.Logger.Debug("the replica has not stopped altogether yet and is started by the reconciler", "shard", d.Shard, "err", err)
		}
		return nil
	}
	return nil
}
