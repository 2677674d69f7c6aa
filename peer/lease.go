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
// left stopped, for whoever decides where replicas are.
type leaseRequest struct {
	Node        string    `json:"node"`
	Now         time.Time `json:"now"`
	Quarantined []uint64  `json:"quarantined,omitempty"`
}

// leaseAnswer says when the lease was renewed, by the clock of the peer that holds the table, and how far that clock is ahead of the
// median of all peers'. Broken says that the node counts as lost all the same, so that nothing is renewed (repair.Broken).
type leaseAnswer struct {
	Renewed time.Time     `json:"renewed"`
	Ahead   time.Duration `json:"ahead"`
	Broken  bool          `json:"broken,omitempty"`
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
	// fence is called once when the lease could not be renewed for fence.After, unfence once it could again; its error leaves the fence up.
	fence   func(ctx context.Context)
	unfence func(ctx context.Context) error
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
	ticker := time.NewTicker(renewInterval)
	defer ticker.Stop()
	for {
		// The lease counts from before the request: the leader cannot have noted it earlier.
		begun := time.Now()
		if err := r.renew(ctx); err != nil {
			r.log.Debug("the lease was not renewed", "error", err)
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
			fenced = true
			r.fence(ctx)
		case lease.Unfence:
			if err := r.unfence(ctx); err != nil {
				r.log.Info("connected again, but what became of this node's pods is not known yet", "error", err)
				break // tried again with the next renewal
			}
			r.log.Info("this peer is connected again")
			fenced = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
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
	status, err := r.host.Where(ctx, consensus.MetaShard)
	if err != nil {
		return err
	}
	switch status.Leader {
	case "":
		return errors.New("the meta shard has no leader")
	case r.self:
		now := r.clock.wall.moment()
		r.local.renew(r.node, time.Now(), 0, r.quarantined())
		r.clock.note(r.local.aheadAt(now), now)
		if r.local.isLost(r.node) {
			return errLeaseBroken
		}
		return nil
	}
	var answer leaseAnswer
	begun := r.clock.wall.moment()
	if err := r.nodes.post(ctx, status.Leader, leasePath, leaseRequest{Node: r.node, Now: begun.Wall, Quarantined: r.quarantined()}, &answer); err != nil {
		return err
	}
	r.clock.note(lease.Exchange(begun, r.clock.wall.moment(), answer.Renewed, answer.Ahead), begun)
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

// leaseHandler takes renewals in, on whichever peer leads the meta shard now. own tells whose node the calling peer may renew.
func leaseHandler(table *renewals, leads func() bool, own func(r *http.Request) string) http.HandlerFunc {
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
		return leaseAnswer{Renewed: now.Wall, Ahead: table.aheadAt(now), Broken: table.isLost(in.Node)}, nil
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
