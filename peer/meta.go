package peer

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/lease"
	"shoal/placement"
	"shoal/placement/repair"
)

// renewals is lease.Table behind a lock: handlers tell it, and the loop that judges reads it.
type renewals struct {
	wall  wall
	lock  sync.Mutex
	table lease.Table
	// broken are the shards whose replica on a node is quarantined.
	broken map[string][]uint64
	// lost are the nodes whose renewals do not count, see repair.Broken; nil while this leader has not judged yet.
	lost map[string]bool
	// nodes is how many there are; 0 while this leader has not judged yet.
	nodes int
}

// judged takes in which of so many nodes are lost; nil ends a leadership.
func (r *renewals) judged(lost map[string]bool, nodes int) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.lost, r.nodes = lost, nodes
}

// isLost tells whether a node's renewal does not count. Before the first judgement nobody's does.
func (r *renewals) isLost(node string) bool {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.lost == nil || r.lost[node]
}

func (r *renewals) renew(node string, now time.Time, offset time.Duration, broken []uint64) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.table.Renew(node, now, offset, r.wall.moment())
	if r.broken == nil {
		r.broken = map[string][]uint64{}
	}
	r.broken[node] = broken
}

// quarantined are the shards whose replica on a node is quarantined, as the node said last.
func (r *renewals) quarantined(node string) []uint64 {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.broken[node]
}

// verdict is how far this peer's clock is ahead of the median of all clocks that the table has heard of.
func (r *renewals) verdict(now lease.Moment) lease.Verdict {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.table.Verdict(now, r.nodes)
}

// off lists the nodes whose clocks keep their peers from writing, and says how far they are off the median.
func (r *renewals) off(now lease.Moment) map[string]error {
	r.lock.Lock()
	defer r.lock.Unlock()
	off := map[string]error{}
	for node, ahead := range r.table.Offsets(now) {
		if err := store.CheckOffset(ahead); err != nil {
			off[node] = err
		}
	}
	return off
}

// snapshot copies the table.
func (r *renewals) snapshot() map[string]time.Time {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.table.Times()
}

// meta does what only the leader of the meta shard does: it judges which nodes are alive, says which peers hold which replicas, and
// keeps the endpoints of the kubernetes Service.
type meta struct {
	host     *consensus.Host
	commit   committer
	renewals *renewals
	repair   repair.Options
	// failed lists node names that gossip has given up on. It is a hint: with it, a node that this leader has never heard of since it
	// took over need not be waited for.
	failed func() map[string]bool
	// advertise tells the API who serves it.
	advertise func(ctx context.Context, peers []netip.AddrPort) error
	shards    *shardKeeper
	// forget removes peers that are gone and whose Node object somebody deleted: this is how a machine that will not come back is given up.
	forget func(ctx context.Context, hasNode func(name string) bool) error
	events events
	log    *slog.Logger

	queue      *queue
	view       *placement.View
	leaseJudge repair.Judge
	since      time.Time
	swept      time.Time
	held       map[string]bool       // zones whose evictions are held back
	serving    chan []netip.AddrPort // the last is what counts
}

// Run leads until ctx ends.
func (m *meta) Run(ctx context.Context) error {
	m.queue, m.view, m.leaseJudge, m.since = newQueue(), placement.NewView(), repair.Judge{}, time.Now()
	m.serving = make(chan []netip.AddrPort, 1)
	group, ctx := errgroup.WithContext(ctx)
	f := &feed{host: m.host, shard: consensus.MetaShard, prefix: nodePrefix, log: m.log, apply: m.queue.from(consensus.MetaShard, nodePrefix)}
	group.Go(func() error { return f.Run(ctx) })
	group.Go(func() error { return m.loop(ctx) })
	group.Go(func() error { return m.publish(ctx) })
	group.Go(func() error { return m.shards.Run(ctx) })
	defer m.renewals.judged(nil, 0)
	return group.Wait()
}

func (m *meta) loop(ctx context.Context) error {
	ticker := time.NewTicker(lease.JudgeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.queue.wake:
		case <-ticker.C:
		}
		for _, c := range m.queue.take() {
			if c.Gone {
				m.view.Delete(c.Object)
			} else {
				m.view.Upsert(c.Object)
			}
		}
		if !m.queue.has(consensus.MetaShard, nodePrefix) {
			continue
		}
		m.judge(ctx, time.Now())
		m.offer(m.whoServes())
		m.sweep(ctx, time.Now())
	}
}

// judge turns leases into node conditions and taints.
func (m *meta) judge(ctx context.Context, now time.Time) {
	patience, err := restarting(ctx, m.host, now)
	if err != nil {
		return // the meta shard has just lost its leader, which is why this loop is about to end
	}
	plan := m.leaseJudge.PlanNodes(m.view, m.leases(now, patience), m.repair, now)
	m.renewals.judged(repair.Broken(m.view, plan), len(m.view.Nodes()))
	var last store.Revision
	for _, change := range plan.Changes {
		at, err := m.commit.Commit(ctx, []placement.Change{change})
		if err != nil {
			if ctx.Err() == nil && !stale(err) {
				m.log.Warn("a node's condition could not be written", "node", change.Object.GetName(), "error", err)
			}
			continue
		}
		last = max(last, at)
		if node, ok := change.Object.(*corev1.Node); ok && change.Verb == placement.UpdateStatus {
			m.log.Info("a node was judged by its lease", "node", node.Name, "ready", placement.NodeCondition(node, corev1.NodeReady).Status)
		}
	}
	deadline := time.Now().Add(time.Second)
	for m.queue.reached(consensus.MetaShard, nodePrefix) < last && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return
		case <-m.queue.wake:
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// sweepInterval is how often the meta leader looks for peers to forget.
const sweepInterval = 5 * time.Second

func (m *meta) sweep(ctx context.Context, now time.Time) {
	if now.Sub(m.swept) < sweepInterval {
		return
	}
	m.swept = now
	m.tellBrakes()
	err := m.forget(ctx, func(name string) bool {
		node, known := m.view.Node(name)
		return known && node.Object != nil
	})
	if err != nil && ctx.Err() == nil {
		m.log.Warn("peers that are gone could not be forgotten", "error", err)
	}
}

// tellBrakes says once, at every lost node of a zone, that nobody is evicted there.
func (m *meta) tellBrakes() {
	held := map[string]bool{}
	for _, brake := range repair.Brakes(m.view, m.repair) {
		held[brake.Zone] = true
		if m.held[brake.Zone] {
			continue
		}
		m.log.Warn("evictions are held back", "reason", brake.Reason)
		for _, node := range m.view.Nodes() {
			if node.Zone() == brake.Zone && node.Lost() {
				m.events.record(placement.Event{
					Regarding: node.Object, Type: corev1.EventTypeWarning, Reason: "EvictionsHeldBack", Message: brake.Reason, Component: "node-controller",
				})
			}
		}
	}
	m.held = held
}

// leases is the table of renewals, completed for nodes that have not renewed with this leader yet.
func (m *meta) leases(now time.Time, patience map[string]bool) map[string]time.Time {
	times := m.renewals.snapshot()
	var names []string
	for _, node := range m.view.Nodes() {
		names = append(names, node.Name)
	}
	lease.Takeover{Since: m.since, Patience: patience, Failed: m.failed(), LeaseTimeout: m.repair.LeaseTimeout}.Complete(times, names, now)
	return times
}

// whoServes are the addresses of the API of every peer whose node is ready.
func (m *meta) whoServes() []netip.AddrPort {
	var peers []netip.AddrPort
	for _, node := range m.view.Nodes() {
		address, err := netip.ParseAddrPort(node.Object.Annotations[apiAnnotation])
		if err == nil && node.Ready() == corev1.ConditionTrue {
			peers = append(peers, address)
		}
	}
	return peers
}

// offer gives publish something newer.
func (m *meta) offer(peers []netip.AddrPort) {
	select {
	case <-m.serving:
	default:
	}
	m.serving <- peers // there is room: nobody else offers
}

// publish keeps the endpoints of the kubernetes Service until ctx ends. It stands beside the loop that judges: those endpoints lie in a data
// shard, which may be without a majority and let every write wait for long, and who is alive must be told meanwhile.
func (m *meta) publish(ctx context.Context) error {
	var advertised []netip.AddrPort
	for {
		select {
		case <-ctx.Done():
			return nil
		case peers := <-m.serving:
			if len(peers) == 0 || slices.Equal(peers, advertised) {
				continue
			}
			if err := m.advertise(ctx, peers); err == nil {
				advertised = peers
			} else if ctx.Err() == nil {
				m.log.Warn("the endpoints of the kubernetes Service could not be written", "error", err)
			}
		}
	}
}
