package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lni/dragonboat/v4"

	"shoal/consensus/bugs"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// reconcileEvery is how often a peer compares what it runs with what it is to run,
// when nothing tells it to.
const reconcileEvery = 2 * time.Second

// conditional is a record that was read and is to be replaced if it is unchanged.
type conditional struct {
	key string
	mod store.Revision
}

func (c conditional) replace(value []byte) store.Transaction {
	return store.Transaction{
		Conditions: []store.Condition{{Key: c.key, Revision: c.mod}},
		Ops:        []store.Op{{Key: c.key, Value: value}},
	}
}

// reconcile starts and stops local replicas so that they are what the assignments
// say, until ctx ends.
func (h *Host) reconcile(ctx context.Context) {
	for ctx.Err() == nil {
		changed := h.changed.wait()
		for _, a := range h.routes.all() {
			if h.recovering(a.Shard) {
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, stepTimeout)
			err := h.reconcileShard(bounded, a)
			cancel()
			h.setTrouble(a.Shard, err)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(reconcileEvery):
		}
	}
}

func (h *Host) setTrouble(shard uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := ""
	if err != nil && h.ctx.Err() == nil {
		text = err.Error()
		if h.trouble[shard] != text {
			h.cfg.Logger.Warn("replica is not as assigned", "shard", shard, "err", err)
		}
	}
	h.trouble[shard] = text
}

// reconcileShard handles one shard: leftovers first, because raft runs at most one
// replica of a shard on a peer.
func (h *Host) reconcileShard(ctx context.Context, a shardmap.Assignment) error {
	want, wanted := a.Of(h.cfg.PeerID)
	have := false
	for _, d := range h.disk.replicas() {
		if d.Shard != a.Shard {
			continue
		}
		if wanted && d.Replica == want.ID && !d.Removing {
			have = true
			continue
		}
		// Its group may need it to agree on the very change that removes it.
		started := h.keepRunning(d)
		gone, err := h.purgeIfRemoved(ctx, d)
		if err != nil || !gone {
			return errors.Join(started, err)
		}
	}
	if !wanted {
		return nil
	}
	if want.Disk != h.disk.identity() {
		return h.claim(ctx, a.Shard)
	}
	d := diskReplica{Shard: a.Shard, Replica: want.ID, NonVoting: true}
	if have {
		for _, known := range h.disk.replicas() {
			if known.Shard == d.Shard && known.Replica == d.Replica {
				d = known
			}
		}
	} else if err := h.disk.put(d); err != nil {
		return err
	}
	if d.Quarantine != "" {
		return h.renew(ctx, d)
	}
	return h.keepRunning(d)
}

// keepRunning starts a replica that has stopped, unless it is to stay so.
func (h *Host) keepRunning(d diskReplica) error {
	if _, running := h.replica(d.Shard); running || d.Removing || d.Quarantine != "" {
		return nil
	}
	if err := h.startReplica(d); err != nil {
		return err
	}
	h.changed.broadcast()
	return nil
}

// claim binds this peer's replica to this data folder in the assignment, before the
// replica is started for the first time.
func (h *Host) claim(ctx context.Context, shard uint64) error {
	a, found, at, err := h.readAssignment(ctx, shard)
	if err != nil || !found {
		return err
	}
	next, changed := a.Claim(h.cfg.PeerID, h.disk.identity())
	if !changed {
		return nil
	}
	return h.writeAssignment(ctx, next, at)
}

// purgeIfRemoved deletes a replica that its group has removed; gone says that it is
// no more. As long as the group counts it, it stays, also if it is not assigned any
// more: it may be needed for the quorum that removes it.
func (h *Host) purgeIfRemoved(ctx context.Context, d diskReplica) (gone bool, err error) {
	if !d.Removing {
		m, err := h.membersOf(ctx, d.Shard)
		if err != nil {
			return false, fmt.Errorf("was replica %d of shard %d removed: %w", d.Replica, d.Shard, err)
		}
		if !m.removed(d.Replica) || bugs.On(bugs.KeepRemoved) {
			return false, nil
		}
		if found, err := h.disk.amend(d.Shard, d.Replica, func(d *diskReplica) { d.Removing = true }); err != nil || !found {
			return !found, err
		}
	}
	if err := h.stopReplica(d.Shard, d.Replica); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = guarded(func() error { return h.nh.SyncRemoveData(ctx, d.Shard, d.Replica) })
	if err != nil && !errors.Is(err, dragonboat.ErrShardNotFound) {
		return false, fmt.Errorf("delete replica %d of shard %d: %w", d.Replica, d.Shard, err)
	}
	h.leases.drop(replicaKey{d.Shard, d.Replica})
	h.cfg.Logger.Info("deleted a replica that was removed", "shard", d.Shard, "replica", d.Replica)
	h.changed.broadcast()
	return true, h.disk.drop(d.Shard, d.Replica)
}

// removeLeftovers deletes replicas whose removal a stop has interrupted, and those that a
// recovery has replaced, before anything runs: raft does not delete one replica of a shard
// while another one runs. What fails is left to reconcile, which says why.
func (h *Host) removeLeftovers() {
	for _, d := range h.disk.replicas() {
		if !d.Removing {
			continue
		}
		ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
		err := h.nh.SyncRemoveData(ctx, d.Shard, d.Replica)
		cancel()
		if err == nil || errors.Is(err, dragonboat.ErrShardNotFound) {
			err = h.disk.drop(d.Shard, d.Replica)
		}
		if err != nil {
			h.cfg.Logger.Warn("a removed replica could not be deleted", "shard", d.Shard, "replica", d.Replica, "err", err)
		}
	}
}
