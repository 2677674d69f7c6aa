package consensus

import (
	"context"
	"errors"
	"slices"
	"time"
)

// removalEvery is how often a peer asks others whether its replicas were removed.
const removalEvery = time.Second

// asked is who was asked about a replica since this host started.
type asked map[diskReplica][]string

// lookForRemovals finds out when a local replica's group goes on without it, although
// no assignment that can be read here says so: after the meta shard was recovered
// elsewhere, replicas of the old one would else go on believing themselves, and with
// enough of them back even elect a leader.
//
// A group that lists a replica ID as removed is conclusive, whoever reports it: IDs
// are never used again, and nothing else makes a group forget a member. Every peer
// that comes into sight is asked once about each local replica, and all again as long
// as it knows no leader. It ends with ctx.
func (h *Host) lookForRemovals(ctx context.Context) {
	done := asked{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(removalEvery):
		}
		alive := h.cfg.Peers()
		for d, peers := range done {
			done[d] = slices.DeleteFunc(peers, func(peer string) bool { return !slices.Contains(alive, peer) })
		}
		for _, d := range h.disk.replicas() {
			if d.Removing || h.recovering(d.Shard) {
				continue
			}
			if info, _ := h.leaders.get(d.Shard); info.LeaderID == 0 {
				delete(done, d)
			}
			if h.askRemoved(ctx, d, alive, done) {
				h.expel(d)
			}
		}
	}
}

// askRemoved asks the peers that were not asked yet.
func (h *Host) askRemoved(ctx context.Context, d diskReplica, alive []string, done asked) bool {
	for _, peer := range alive {
		if peer == h.cfg.PeerID || slices.Contains(done[d], peer) {
			continue
		}
		m, err := h.membersAt(ctx, peer, d.Shard)
		if err == nil && m.removed(d.Replica) {
			return true
		}
		if err == nil || errors.Is(err, errNoReplica) {
			done[d] = append(done[d], peer)
		}
	}
	return false
}

// expel marks a replica for deletion; reconcile carries it out, and may have done so while others were asked.
func (h *Host) expel(d diskReplica) {
	found, err := h.disk.amend(d.Shard, d.Replica, func(d *diskReplica) { d.Removing = true })
	switch {
	case err != nil:
		h.cfg.Logger.Error("a removed replica cannot be marked", "shard", d.Shard, "err", err)
	case found:
		h.cfg.Logger.Warn("a replica was removed while this peer was away", "shard", d.Shard, "replica", d.Replica)
		h.changed.broadcast()
	}
}
