package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"shoal/consensus/bugs"
	"shoal/consensus/shardmap"
)

const (
	stepEvery    = 100 * time.Millisecond
	settledEvery = 2 * time.Second
	stepTimeout  = 5 * time.Second
)

// reconfigure brings the groups that this host leads towards their assignments, one
// change at a time, until ctx ends.
func (h *Host) reconfigure(ctx context.Context) {
	for ctx.Err() == nil {
		changed := h.changed.wait()
		pause := settledEvery
		for _, r := range h.runningReplicas() {
			if info, _ := h.leaders.get(r.shard); !leads(info) {
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, stepTimeout)
			acted, err := h.stepShard(bounded, r)
			cancel()
			if err != nil && ctx.Err() == nil {
				h.cfg.Logger.Debug("membership change", "shard", r.shard, "err", err)
			}
			if acted || err != nil {
				pause = stepEvery
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(pause):
		}
	}
}

// stepShard makes the next change of a shard, if there is one. acted says that the
// shard is not settled.
func (h *Host) stepShard(ctx context.Context, r *replica) (acted bool, err error) {
	a, known := h.routes.assignment(r.shard)
	if !known || h.recovering(r.shard) {
		return false, nil
	}
	m, err := h.readMembership(ctx, r)
	if err != nil {
		return false, err
	}
	// Whoever is deaf never catches up either, so a change may wait for this.
	if err := h.wakeDeaf(ctx, r, m); err != nil || asAssigned(a, m) {
		return false, err
	}
	// The cached assignment is good enough to see that something is to be done, not
	// to do it: a removal cannot be taken back.
	a, found, at, err := h.readAssignment(ctx, r.shard)
	if err != nil || !found {
		return true, err
	}
	for _, assigned := range a.Replicas {
		if m.removed(assigned.ID) {
			return true, h.writeAssignment(ctx, a.Renew(assigned.ID), at)
		}
	}
	if bugs.On(bugs.RemoveFirst) {
		for id, peer := range m.Voters {
			if want, assigned := a.Of(peer); id != r.id && (!assigned || want.ID != id) {
				return true, h.take(ctx, r, shardmap.Step{Kind: shardmap.Remove, Replica: id, Peer: peer}, m)
			}
		}
	}
	step := shardmap.Next(a, shardmap.Members{Voters: m.Voters, NonVoters: m.NonVoters}, r.id,
		func(id uint64) bool { return h.caughtUp(ctx, r, id, m.NonVoters[id]) })
	return true, h.take(ctx, r, step, m)
}

func asAssigned(a shardmap.Assignment, m membership) bool {
	if len(a.Replicas) != len(m.Voters)+len(m.NonVoters) {
		return false
	}
	for _, r := range a.Replicas {
		if _, votes := m.Voters[r.ID]; votes != r.Voter {
			return false
		}
		if _, listens := m.NonVoters[r.ID]; !r.Voter && !listens {
			return false
		}
	}
	return true
}

// caughtUp asks a non-voting replica's peer whether it has all that this leader has
// now.
func (h *Host) caughtUp(ctx context.Context, r *replica, id uint64, peer string) bool {
	hub := r.hub()
	if hub == nil {
		return false
	}
	target := hub.current().Revision()
	status, err := h.statusAt(ctx, peer, r.shard)
	return err == nil && target > 0 && status.Local && status.ReplicaID == id && status.Revision >= target
}

func (h *Host) take(ctx context.Context, r *replica, step shardmap.Step, m membership) error {
	var err error
	switch step.Kind {
	case shardmap.AddNonVoter:
		err = h.nh.SyncRequestAddNonVoting(ctx, r.shard, step.Replica, step.Peer, m.Change)
	case shardmap.Promote:
		err = h.nh.SyncRequestAddReplica(ctx, r.shard, step.Replica, step.Peer, m.Change)
	case shardmap.Remove:
		err = h.nh.SyncRequestDeleteReplica(ctx, r.shard, step.Replica, m.Change)
	case shardmap.TransferAway:
		// The step's choice knows nothing of who is alive.
		to := step.Replica
		if status, err := h.statusAt(ctx, step.Peer, r.shard); err != nil || status.ReplicaID != to {
			other, found := h.successor(ctx, r)
			if !found {
				return fmt.Errorf("%v replica %d on peer %s: it does not answer, and nobody else can lead", step.Kind, to, step.Peer)
			}
			to = other
		}
		err = h.nh.RequestLeaderTransfer(r.shard, to)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("%v replica %d on peer %s: %w", step.Kind, step.Replica, step.Peer, err)
	}
	h.cfg.Logger.Info("membership changed", "shard", r.shard, "step", step.Kind.String(),
		"replica", step.Replica, "peer", step.Peer)
	return nil
}

// TransferLeadership asks the shard's leader, which must be this host's replica, to
// hand over to the peer's voting replica, and waits until this host does not lead
// any more. raft may lose a transfer, so it is asked for again until ctx ends.
func (h *Host) TransferLeadership(ctx context.Context, shard uint64, peer string) error {
	for {
		r, here := h.replica(shard)
		info, changed := h.leaders.get(shard)
		if !here || !leads(info) {
			return nil
		}
		to := uint64(0)
		for id, at := range r.voters() {
			if at == peer {
				to = id
			}
		}
		if to == 0 {
			return fmt.Errorf("shard %d: peer %s holds no vote", shard, peer)
		}
		if err := h.nh.RequestLeaderTransfer(r.shard, to); err != nil {
			h.cfg.Logger.Debug("leadership transfer", "shard", shard, "err", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shard %d: leadership was not taken over: %w", shard, ctx.Err())
		case <-changed:
		case <-time.After(20 * h.cfg.RTT):
		}
	}
}

// successor picks a voter on another peer that runs and can take over leadership.
func (h *Host) successor(ctx context.Context, r *replica) (uint64, bool) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	for id, peer := range r.voters() {
		if id == r.id {
			continue
		}
		if status, err := h.statusAt(ctx, peer, r.shard); err == nil && status.ReplicaID == id {
			return id, true
		}
	}
	return 0, false
}

// membersOf asks the peers that hold the shard for its membership.
func (h *Host) membersOf(ctx context.Context, shard uint64) (membership, error) {
	err := error(errNoPeer)
	for _, peer := range h.routes.candidates(shard) {
		m, askErr := h.membersAt(ctx, peer, shard)
		if askErr == nil {
			return m, nil
		}
		err = errors.Join(err, fmt.Errorf("peer %s: %w", peer, askErr))
		if ctx.Err() != nil {
			break
		}
	}
	return membership{}, err
}
