package peer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/lease"
	"shoal/runtime/containerd/fence"
)

// Lease timing. A node is lost when the meta leader has not heard of it for repair.Options.LeaseTimeout; a peer that has not been heard
// for fence.After stops, before repair.Options.Fencing has passed, what must never run twice (D8).
const (
	renewInterval = lease.RenewInterval
	renewTimeout  = lease.RenewTimeout
	fenceGrace    = fence.Grace
)

// leaseRequest renews the lease of the calling peer's node. Now is that peer's clock; Quarantined are the shards whose replica there is
// left stopped, for whoever decides where replicas are. Seen is the highest revision that the peer knows of (consensus.Host.Exchange).
type leaseRequest struct {
	Node        string         `json:"node"`
	Now         time.Time      `json:"now"`
	Seen        store.Revision `json:"seen"`
	Quarantined []uint64       `json:"quarantined,omitempty"`
}

// leaseAnswer says when the lease was renewed, by the clock of the peer that holds the table, and how far that clock is ahead of the
// median of all peers', as the table knows it. Seen is the highest revision that the table's peer knows of. Broken says that the node counts
// as lost all the same, so that nothing is renewed (repair.Broken).
type leaseAnswer struct {
	Renewed time.Time      `json:"renewed"`
	Clock   lease.Verdict  `json:"clock"`
	Seen    store.Revision `json:"seen"`
	Broken  bool           `json:"broken,omitempty"`
}

var errLeaseBroken = errors.New("the node counts as lost until it has reported itself ready again")

var errNotMetaLeader = errors.New("this peer does not lead the meta shard")

// renewer keeps this node's lease.
type renewer struct {
	host  *consensus.Host
	nodes *nodeClient
	self  string // peer ID
	node  string
	local *renewals
	clock *clock
	// fence is called once when the lease could not be renewed for fence.After. lift is called at the start, and once it could again: it ends
	// when everything may run here, or ctx ends, which is before the next fence. It must not hold up renewals.
	fence func(ctx context.Context)
	lift  func(ctx context.Context)
	// broken is called when a renewal was answered with errLeaseBroken: this node has to say that it is ready, and may not have heard of its
	// being judged lost otherwise, as long as its watch waits for a peer that is gone.
	broken func()
	// heartbeat is called after each renewal, with the moment of its request: a watchdog stands in for this process when it dies.
	heartbeat func(renewed time.Time) error
	// back is called after the first renewal, until it succeeds: the node is up again.
	back func(ctx context.Context) error
	log  *slog.Logger

	lock sync.Mutex
	last time.Time
}

// Run renews until ctx ends.
func (r *renewer) Run(ctx context.Context) error {
	r.note(time.Now())
	fenced, back := false, false
	endLift := r.beginLift(ctx)
	defer func() { endLift() }()
	ticker := time.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		// The lease counts from before the request: the leader cannot have noted it earlier.
		begun := time.Now()
		if err := r.renew(ctx); err != nil {
			r.log.Debug("the lease was not renewed", "error", err)
			if errors.Is(err, errLeaseBroken) {
				r.broken()
			}
		} else {
			r.note(begun)
			if err := r.heartbeat(begun); err != nil {
				r.log.Error("the watchdog cannot be told of the lease and will stop pods that must not run twice", "error", err)
			} else {
				// Only now: as long as the watchdog still grants the patience of a restart, the others must grant it too.
				back = back || r.returned(ctx) == nil // tried again with the next renewal
			}
		}
		r.clock.report(r.log)
		switch lease.Next(time.Since(r.renewed()), fenced) {
		case lease.Fence:
			r.log.Warn("this peer is cut off: pods that must not run twice are stopped", "since", r.renewed())
			endLift()
			fenced = true
			r.fence(ctx)
		case lease.Unfence:
			r.log.Info("this peer is connected again")
			fenced = false
			endLift = r.beginLift(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// beginLift runs lift beside the renewals. end ends it and waits for that.
func (r *renewer) beginLift(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var lifting sync.WaitGroup
	lifting.Go(func() { r.lift(ctx) })
	return func() {
		cancel()
		lifting.Wait()
	}
}

func (r *renewer) returned(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return r.back(ctx)
}

func (r *renewer) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	leader, err := r.host.Leader(ctx, consensus.MetaShard)
	if err != nil {
		return err
	}
	err = r.renewWith(ctx, leader)
	if err == nil || errors.Is(err, errLeaseBroken) {
		return err
	}
	r.host.Misled(consensus.MetaShard, leader)
	if next, unknown := r.host.Leader(ctx, consensus.MetaShard); unknown == nil && next != leader {
		return r.renewWith(ctx, next)
	}
	return err
}

// renewWith renews with the peer that is taken for the meta leader.
func (r *renewer) renewWith(ctx context.Context, leader string) error {
	switch leader {
	case "":
		return errors.New("the meta shard has no leader")
	case r.self:
		now := r.clock.wall.moment()
		r.local.renew(r.node, time.Now(), 0, r.quarantined())
		r.clock.note(r.local.verdict(now), now)
		if r.local.isLost(r.node) {
			return errLeaseBroken
		}
		return nil
	}
	var answer leaseAnswer
	begun := r.clock.wall.moment()
	request := leaseRequest{Node: r.node, Now: begun.Wall, Seen: r.host.Exchange(0), Quarantined: r.quarantined()}
	if err := r.nodes.post(ctx, leader, leasePath, request, &answer); err != nil {
		return err
	}
	r.host.Exchange(answer.Seen)
	r.clock.note(lease.Exchange(begun, r.clock.wall.moment(), answer.Renewed, answer.Clock), begun)
	if answer.Broken {
		return errLeaseBroken
	}
	return nil
}

func (r *renewer) quarantined() []uint64 { return slices.Sorted(maps.Keys(r.host.Quarantined())) }

func (r *renewer) note(at time.Time) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.last = at
}

// leaseHandler takes renewals in, on whichever peer leads the meta shard now. own tells whose node the calling peer may renew, seen is
// consensus.Host.Exchange.
func leaseHandler(table *renewals, leads func() bool, own func(r *http.Request) string, seen func(store.Revision) store.Revision) http.HandlerFunc {
	return answerJSON(func(r *http.Request, in leaseRequest) (leaseAnswer, error) {
		if !leads() {
			return leaseAnswer{}, errNotMetaLeader
		}
		if in.Node == "" || in.Node != own(r) {
			return leaseAnswer{}, errors.New("a peer renews only its own node's lease")
		}
		if len(in.Quarantined) > store.MaxShard+1 {
			return leaseAnswer{}, errors.New("more replicas are quarantined than there can be shards")
		}
		now := table.wall.moment()
		table.renew(in.Node, time.Now(), in.Now.Sub(now.Wall), in.Quarantined)
		return leaseAnswer{Renewed: now.Wall, Clock: table.verdict(now), Seen: seen(in.Seen), Broken: table.isLost(in.Node)}, nil
	})
}

// leaseDuration is what Lease objects say: how long after its last renewal a node is taken for alive.
const leaseDuration = 2 * time.Second

// leases are the Lease objects of kube-node-lease. Nobody writes them: they are made from the meta leader's table when somebody reads.
func (p *Peer) leases() []coordinationv1.Lease {
	ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
	defer cancel()
	table, err := p.renewalTable(ctx)
	if err != nil {
		p.log.Debug("the leases could not be read", "error", err)
		return nil
	}
	seconds := int32(leaseDuration / time.Second)
	var leases []coordinationv1.Lease
	for node, renewed := range table {
		leases = append(leases, coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &node, LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: renewed},
			},
		})
	}
	slices.SortFunc(leases, func(a, b coordinationv1.Lease) int { return strings.Compare(a.Name, b.Name) })
	return leases
}

// renewalTable asks the meta leader, which may be this peer.
func (p *Peer) renewalTable(ctx context.Context) (map[string]time.Time, error) {
	status, err := p.host.Where(ctx, consensus.MetaShard)
	if err != nil {
		return nil, err
	}
	if status.Leader == p.self.ID {
		return p.renewals.snapshot(), nil
	}
	var table map[string]time.Time
	return table, p.nodes.post(ctx, status.Leader, leasePath+"/all", struct{}{}, &table)
}
