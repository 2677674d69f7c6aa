package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/statemachine"

	"shoal/consensus/store"
)

// How long one attempt at a replica may take before another is made.
const (
	readAttempt  = time.Second
	writeAttempt = 2 * time.Second
	// staleAfter is when a replica that found no quorum since its start answers
	// local reads with what its disk held.
	staleAfter = 5 * time.Second
)

// replica is a running local replica.
type replica struct {
	shard, id uint64
	machine   atomic.Pointer[machine]
	// ready says that the replica shows at least what it showed before it was
	// started: until then its log may not be replayed.
	ready atomic.Bool
	// cutOff says that the replica has not known a leader for some time.
	cutOff atomic.Bool
	// leading follows reported leaderships.
	leading atomic.Bool
	// members is the group as it was last read, nil before; regrouped says that it
	// has to be read again.
	members   atomic.Pointer[membership]
	regrouped chan struct{}
	reads     reads
	lease     *readLease
	detour    detour
	cancel    context.CancelFunc
}

func (r *replica) hub() *hub {
	if m := r.machine.Load(); m != nil {
		return m.hub
	}
	return nil
}

// view is the newest View of a ready replica.
func (r *replica) view() (store.View, bool) {
	if hub := r.hub(); hub != nil && r.ready.Load() {
		return hub.current(), true
	}
	return store.View{}, false
}

// startReplica starts a replica that the folder has on record.
func (h *Host) startReplica(d diskReplica) error {
	h.starting.Lock()
	defer h.starting.Unlock()
	if _, running := h.replica(d.Shard); running {
		return nil
	}
	why, err := h.fit(d)
	if err != nil {
		return fmt.Errorf("start replica %d of shard %d: %w", d.Replica, d.Shard, err)
	}
	if why != "" {
		return fmt.Errorf("replica %d of shard %d is %w: %s", d.Replica, d.Shard, errQuarantined, why)
	}
	r := &replica{shard: d.Shard, id: d.Replica, regrouped: make(chan struct{}, 1), lease: h.leases.start(replicaKey{d.Shard, d.Replica})}
	create := func(uint64, uint64) statemachine.IConcurrentStateMachine {
		m := newMachine(d.Shard, h.cfg.History, &h.clock)
		m.fault = func(kind FaultKind, err error) {
			r.ready.Store(false)
			h.contain(Fault{Shard: d.Shard, Replica: d.Replica, Kind: kind, What: err.Error()})
		}
		r.machine.Store(m)
		return m
	}
	// A replica that raft's log knows starts without members. One it does not know
	// joins its group, or, if it came from an interrupted founding, founds it.
	if err := h.crashes.starting(replicaKey{d.Shard, d.Replica}); err != nil {
		return fmt.Errorf("start replica %d of shard %d: %w", d.Replica, d.Shard, err)
	}
	err = guarded(func() error {
		var members map[uint64]dragonboat.Target
		fresh := !h.nh.HasNodeInfo(d.Shard, d.Replica)
		if fresh && !d.NonVoting {
			members = map[uint64]dragonboat.Target{d.Replica: h.cfg.PeerID}
		}
		return h.nh.StartConcurrentReplica(members, fresh && d.NonVoting, create, h.replicaConfig(d))
	})
	if err != nil {
		return fmt.Errorf("start replica %d of shard %d: %w", d.Replica, d.Shard, err)
	}
	faulty.started(h, replicaKey{d.Shard, d.Replica})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	ctx, cancel := context.WithCancel(h.ctx)
	r.cancel = cancel
	h.replicas[d.Shard] = r
	h.loops.Go(func() { h.awaitReady(ctx, r) })
	h.loops.Go(func() { h.followMembers(ctx, r) })
	h.loops.Go(func() { h.followLeadership(ctx, r) })
	h.loops.Go(func() { h.leaveCutOff(ctx, r) })
	h.loops.Go(func() { h.sweepExpired(ctx, r) })
	if h.cfg.SnapshotEntries == 0 {
		h.loops.Go(func() { h.makeSnapshots(ctx, r) })
	}
	return nil
}

// stopReplica stops a replica and keeps its data.
func (h *Host) stopReplica(shard, id uint64) error {
	h.mu.Lock()
	r, running := h.replicas[shard]
	if running && r.id == id {
		delete(h.replicas, shard)
	}
	h.mu.Unlock()
	if running && r.id == id {
		r.cancel()
	}
	err := h.nh.StopReplica(shard, id)
	if !running || r.id == id {
		h.leaders.forget(shard) // not when its successor runs already
	}
	if err != nil && !errors.Is(err, dragonboat.ErrShardNotFound) {
		return fmt.Errorf("stop replica %d of shard %d: %w", id, shard, err)
	}
	return nil
}

// awaitReady waits until the replica has caught up with a quorum once, or for lack
// of one long enough to trust that its own log is replayed.
func (h *Host) awaitReady(ctx context.Context, r *replica) {
	start := time.Now()
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, readAttempt)
		_, err := h.readIndex(attempt, r)
		cancel()
		hub := r.hub()
		if err == nil || (time.Since(start) > staleAfter && hub != nil && hub.current().Revision() > 0) {
			r.ready.Store(true)
			h.changed.broadcast()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// confirm asks a quorum what the newest committed entry is, waits until the replica
// has applied it and returns the View. It ends early when the shard gets a new
// leader, because the old one's confirmation is lost.
func (h *Host) confirm(ctx context.Context, r *replica) (store.View, error) {
	was, changed := h.leaders.get(r.shard)
	request, err := inRaft(h, func() (*dragonboat.RequestState, error) { return h.nh.ReadIndex(r.shard, readAttempt) })
	if err != nil {
		return store.View{}, err
	}
	for {
		select {
		case out := <-request.ResultC():
			request.Release()
			if !out.Completed() {
				return store.View{}, fmt.Errorf("no confirmed read: %v", outcomeName(out))
			}
			// The replica has applied all that the quorum had, unless its machine died.
			if m := r.machine.Load(); !m.dead.Load() {
				return m.hub.current(), nil
			}
			return store.View{}, errNotReady
		case <-changed:
			now, next := h.leaders.get(r.shard)
			if changed = next; now.LeaderID != 0 && now.Term != was.Term {
				return store.View{}, errors.New("its leader changed")
			}
		case <-ctx.Done():
			return store.View{}, ctx.Err()
		case <-h.ctx.Done():
			return store.View{}, ErrClosed
		}
	}
}

func outcomeName(out dragonboat.RequestResult) string {
	switch {
	case out.Timeout():
		return "timed out"
	case out.Dropped():
		return "dropped, its replica has no leader"
	case out.Terminated():
		return "its replica stops"
	default:
		return "aborted"
	}
}

func (h *Host) replica(shard uint64) (*replica, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, ok := h.replicas[shard]
	return r, ok
}

// runningReplicas lists the local replicas.
func (h *Host) runningReplicas() []*replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*replica, 0, len(h.replicas))
	for _, r := range h.replicas {
		all = append(all, r)
	}
	return all
}
