package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/consensus/store"
	"shoal/peer/lease"
	"shoal/placement"
	"shoal/runtime/containerd/fence"
	"shoal/runtime/pods"
)

// node is one machine: its peer's process, its containers, and the watchdog that outlives the process.
type node struct {
	model *Model
	name  string
	index int
	zone  string

	up       bool // the machine runs
	dead     bool // the peer's process does not; containers run on
	frozen   bool // the peer's process stands still; containers run on
	life     int  // of the peer's process; steps of an earlier one are void
	deferred []step
	stale    bool    // something was missed while out of reach
	slow     float64 // times as slow as it should be; 0 is 1
	slowed   []*slowStep
	disk     diskState
	clock    wallClock
	seen     store.Revision // the highest that the peer's process has heard of
	replicas []*replica
	leaving  bool          // it gives up what it holds
	left     bool          // it has
	draining bool          // its pods are moved away
	patience time.Duration // until when the others wait for its announced restart
	stopping bool          // it has announced one, and not been started since

	ledger *pods.Ledger
	bound  podList // what the peer knows to be its own, by shard
	known  bool    // bound is complete
	pods   map[types.UID]*container
	ips    int // given so far
	// claimed is when each pod's room was last asked for, for the checker of claims.
	claimed map[types.UID]time.Duration

	booted  time.Duration // when the peer's process was started
	renewed time.Duration // when the last lease renewal that succeeded was begun
	// heartbeat is the same for the watchdog, which remembers it when the peer starts again, but not when the machine does; in the future
	// while a restart is announced.
	heartbeat time.Duration
	fenced    bool
	// takenSince is when the store was first seen to hold a fenced node for one that is not lost; negative for not yet.
	takenSince time.Duration
	watched    bool          // the watchdog has something to look at
	befallen   time.Duration // when a fault began or ended here last
	dirty      map[types.UID]bool
}

// container is what runs of one pod; pods have one each here.
type container struct {
	pod      *corev1.Pod
	ip       string
	running  bool // processes run
	stopping bool
	identity bool
	overdue  bool // was told of by the checker of fencing

	// Of a Job's pod, see job.go.
	begun    time.Duration // when it was started last
	restarts int
	exited   bool // it has ended for good
	failed   bool // with an error
	ended    time.Time
}

// Times of peer/nodestatus.go.
const (
	statusInterval = 10 * time.Second
	retryReport    = 250 * time.Millisecond
)

// do asks for a step of the peer's process: it waits while the process is frozen, and is void when the process is gone.
func (n *node) do(delay time.Duration, kind string, do func()) {
	life := n.life
	n.later(delay, kind, func() {
		switch {
		case n.life != life || !n.up || n.dead:
		case n.frozen:
			n.deferred = append(n.deferred, step{kind: kind, do: do})
		default:
			do()
		}
	})
}

// boot starts the peer's process. What it must learn and say it does in an order of its own, as in production.
func (n *node) boot() {
	m := n.model
	n.life++
	n.up, n.dead, n.frozen, n.fenced, n.known, n.stale = true, false, false, false, false, true
	n.ledger, n.bound, n.dirty, n.deferred = pods.NewLedger(), nil, map[types.UID]bool{}, nil
	n.claimed = map[types.UID]time.Duration{}
	n.booted, n.renewed, n.stopping = m.now, m.now, false
	n.forgetClock()
	n.seen = 0
	for _, r := range n.replicas {
		if !r.gone {
			n.observe(r.state.View().Revision())
		}
	}
	n.changed()
	n.watch()
	n.do(m.between(0, lease.RenewInterval), "renew", n.renew)
	n.do(m.between(50*time.Millisecond, 500*time.Millisecond), "status", n.keepStatus)
	n.do(m.between(50*time.Millisecond, 500*time.Millisecond), "sync", n.sync)
}

// sync follows the store: it reads everything again whenever something was missed.
func (n *node) sync() {
	if n.stale && n.hearsAll() {
		before := n.known
		n.stale, n.known = false, true
		for _, s := range n.model.shards {
			n.look(s)
		}
		all := n.bound.byUID()
		if n.model.cfg.bug != bugClaimKept || !before {
			n.ledger.SetRunning(all)
		}
		n.model.note("%s knows its %d pods", n.name, len(all))
		if n.fenced && n.model.now-n.renewed < fence.After && n.taken() {
			n.unfence()
		}
		n.sweep()
		for _, pod := range n.bound.byUID() {
			n.upsert(pod)
		}
		n.changed()
	}
	n.do(n.model.between(100*time.Millisecond, slowestFeed), "sync", n.sync)
}

// sweep ends what ran here before the peer was started, and is not its own any more.
func (n *node) sweep() {
	for _, uid := range n.running() {
		if n.ownPod(n.pods[uid].pod) == nil || n.model.cfg.bug == bugRestartKills && n.model.now-n.booted < 5*time.Second {
			n.stop(uid, 2*time.Second, endMoved)
		}
	}
}

// slowestFeed is how long a connection that stood still may take to be noticed and made anew.
const slowestFeed = 3 * time.Second

func (n *node) hearsAll() bool {
	return !slices.ContainsFunc(n.model.shards, func(s *shard) bool { return !n.hears(s) })
}

// hears tells whether the node can read a shard: at its leader, or else at any voter that the leader reaches, as the feeds of production go
// from one copy to the next. Without a leader any voter does: nothing is committed that it could have missed.
func (n *node) hears(s *shard) bool {
	if s.leader != nil && n.model.reaches(s.leader, n) {
		return true
	}
	return slices.ContainsFunc(s.replicas, func(r *replica) bool {
		return !r.gone && r.voter() && n.model.reaches(r.node, n) && (s.leader == nil || n.model.reaches(s.leader, r.node))
	})
}

// ownPod is what the peer knows of a pod of its own, nil if it is none.
func (n *node) ownPod(of *corev1.Pod) *corev1.Pod {
	return n.bound.get(int(n.model.shardOf(of.Namespace).number), of.UID)
}

// look compares what a shard says of this node with what the node knows.
func (n *node) look(s *shard) {
	if !n.hears(s) {
		n.stale = true
		return
	}
	if s.number == 0 {
		n.writeStatus()
		return
	}
	group, want, changed := int(s.number), n.model.checks.boundTo(s, n.name), false
	for _, had := range slices.Clone(n.bound.in(group)) {
		if want.get(group, had.pod.UID) == nil {
			changed = true
			n.bound.drop(group, had.pod.UID)
			n.remove(had.pod.UID)
		}
	}
	for _, listed := range slices.Clone(want) {
		pod := listed.pod
		if had := n.bound.get(group, pod.UID); had == nil || had.ResourceVersion != pod.ResourceVersion {
			changed = true
			n.bound.put(group, pod)
			if n.known {
				n.ledger.Upsert(pod)
				n.upsert(pod)
			}
		}
	}
	if changed {
		n.model.changedRoom(n)
	}
}

func (n *node) remove(uid types.UID) {
	if n.model.cfg.bug != bugClaimKept {
		n.ledger.Remove(uid)
	}
	n.stop(uid, 2*time.Second, endMoved)
}

// upsert does what a bound pod asks for.
func (n *node) upsert(pod *corev1.Pod) {
	c := n.pods[pod.UID]
	if c != nil {
		c.pod = pod
	}
	switch {
	case pod.DeletionTimestamp != nil && c == nil, c != nil && c.exited:
		n.report(pod)
	case pod.DeletionTimestamp != nil:
		n.stop(pod.UID, 5*time.Second, endDeleted)
	case c == nil:
		n.start(pod)
	case c.running && !c.stopping && !placement.Ready(pod):
		n.report(pod) // somebody has marked it while this node was not heard
	}
}

// identity is the rule of peer/nodefence.go: no claims are asked for, the model has no volumes.
func identity(pod *corev1.Pod) bool { return pods.NeedsIdentity(pod, nil) }

func (n *node) start(pod *corev1.Pod) {
	if placement.Ready(pod) {
		n.report(pod) // it is not, whatever was said before it ended
	}
	if n.fenced && identity(pod) {
		return
	}
	c := &container{pod: pod, identity: identity(pod), ip: n.nextIP()}
	n.pods[pod.UID] = c
	if len(pod.Status.ContainerStatuses) > 0 {
		c.restarts = int(pod.Status.ContainerStatuses[0].RestartCount)
	}
	if n.interrupted(pod) {
		n.exited(c, true)
		n.report(pod)
		return
	}
	n.do(n.model.between(300*time.Millisecond, 1500*time.Millisecond), "start", func() { n.started(c) })
}

// started is when a container runs, or would: a full disk has no room for it, and without a lease none starts that must not run twice.
func (n *node) started(c *container) {
	pod := c.pod
	switch {
	case n.pods[pod.UID] != c || c.stopping:
	case n.disk.full, c.identity && n.model.now-n.heartbeat > fence.After+n.model.lateness():
		n.do(time.Second, "start", func() { n.started(c) })
	default:
		c.running = true
		n.model.changedPod(pod.Namespace, n)
		n.model.note("%s runs %s/%s", n.name, pod.Namespace, pod.Name)
		n.model.checks.started(n, c)
		n.run(c)
		n.do(n.model.between(100*time.Millisecond, time.Second), "ready", func() { n.report(pod) })
	}
}

// stop ends a pod's container, for a reason; it takes at most so long.
func (n *node) stop(uid types.UID, most time.Duration, why string) {
	c := n.pods[uid]
	if c == nil || c.stopping {
		return
	}
	if c.exited {
		delete(n.pods, uid)
		n.model.changedPod(c.pod.Namespace, n)
		return
	}
	c.stopping = true
	n.model.checks.restarts.ended(n.model, n, c, why)
	if !c.running {
		n.ended(uid, c)
		return
	}
	n.do(n.model.between(50*time.Millisecond, most), "stop", func() { n.ended(uid, c) })
}

func (n *node) ended(uid types.UID, c *container) {
	if n.pods[uid] != c {
		return
	}
	delete(n.pods, uid)
	n.model.changedPod(c.pod.Namespace, n)
	n.model.note("%s has ended %s/%s", n.name, c.pod.Namespace, c.pod.Name)
	if pod := n.ownPod(c.pod); pod != nil {
		n.report(pod)
		if pod.DeletionTimestamp == nil {
			n.start(pod)
		}
	}
}

// report writes what has become of a pod, until it arrives.
func (n *node) report(pod *corev1.Pod) {
	if n.dirty[pod.UID] {
		return
	}
	n.dirty[pod.UID] = true
	n.do(n.model.commitDelay(), "report", func() { n.tryReport(pod) })
}

func (n *node) tryReport(known *corev1.Pod) {
	uid, pod := known.UID, n.ownPod(known)
	if pod == nil {
		delete(n.dirty, uid)
		return
	}
	s := n.model.shardOf(pod.Namespace)
	stored, ok := s.pod(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
	if !ok || stored.UID != uid {
		delete(n.dirty, uid)
		return
	}
	c := n.pods[uid]
	var changes []placement.Change
	if stored.DeletionTimestamp != nil && (c == nil || c.exited) {
		changes = n.ending(stored, c)
	} else {
		want := stored.DeepCopy()
		want.Status = statusOf(stored, c, n.wall())
		if c != nil && n.model.jobOf(stored) != nil {
			c.describe(&want.Status)
		}
		changes = []placement.Change{{Verb: placement.UpdateStatus, Object: want, UID: uid}}
	}
	n.model.propose(n, s, changes, func(err error) {
		if err != nil {
			n.do(retryReport, "report", func() { n.tryReport(known) })
			return
		}
		delete(n.dirty, uid)
		if now := n.ownPod(known); now != nil && n.outdated(now) {
			n.report(now)
		}
	})
}

// outdated tells whether a pod's container has changed since its state was reported.
func (n *node) outdated(pod *corev1.Pod) bool {
	c := n.pods[pod.UID]
	runs := c != nil && c.running && !c.stopping
	stored, ok := n.model.shardOf(pod.Namespace).pod(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
	return ok && stored.UID == pod.UID && (placement.Ready(stored) != runs || c == nil && stored.DeletionTimestamp != nil ||
		c != nil && c.exited && !placement.Finished(stored))
}

// statusOf is a pod's status as its node sees it.
func statusOf(stored *corev1.Pod, c *container, now time.Time) corev1.PodStatus {
	status := *stored.Status.DeepCopy()
	ready := corev1.ConditionFalse
	if c != nil && c.running && !c.stopping {
		ready, status.Phase, status.PodIP = corev1.ConditionTrue, corev1.PodRunning, c.ip
	}
	at := metav1.NewTime(now)
	for i := range status.Conditions {
		if have := &status.Conditions[i]; have.Type == corev1.PodReady {
			if have.Status != ready {
				*have = corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: at}
			}
			return status
		}
	}
	status.Conditions = append(status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: at})
	return status
}

// renew keeps the node's lease, and fences when it cannot (D8), as peer/lease.go does.
func (n *node) renew() {
	m := n.model
	n.do(lease.RenewInterval, "renew", n.renew)
	n.fence()
	begun, asked, seen := m.now, n.moment(), n.seen
	leader := m.shards[0].leaderFor(n)
	if leader == nil || leader.meta == nil {
		return
	}
	meta := leader.meta
	m.send(n, leader.node, "renewal", func() {
		if !meta.leads() {
			return
		}
		noted := leader.node.moment()
		meta.table.Renew(n.name, leader.node.monotonic(), asked.Wall.Sub(noted.Wall), noted)
		leader.node.observe(seen)
		seen := leader.node.seen
		told, broken, misled := meta.table.Verdict(noted, meta.nodes), meta.isBroken(n), meta.misled()
		m.send(leader.node, n, "renewed", func() {
			if m.now-begun > lease.RenewTimeout || begun < n.renewed {
				return
			}
			n.observe(seen)
			if n.clock.lease.Note(lease.Exchange(asked, n.moment(), noted.Wall, told), asked) {
				n.told(misled)
			}
			if !broken || m.cfg.bug == bugBrokenLease {
				n.renewed = begun
				if !n.stopping {
					// The others wait no longer than the watchdog does: it is told first.
					n.heartbeat, n.patience = begun, 0
				}
				n.fence()
			}
		})
	})
}

// fence does what the age of the lease asks for.
func (n *node) fence() {
	age := n.model.now - n.renewed
	if late := n.model.lateness(); late > 0 {
		age -= late
	}
	switch lease.Next(age, n.fenced) {
	case lease.Fence:
		n.fenced, n.takenSince = true, -1
		n.model.note("%s is cut off and fences", n.name)
		n.model.emit(Event{Kind: EventFenced, Node: n.name})
		for _, uid := range n.running() {
			if n.pods[uid].identity {
				n.model.outcome.Fenced++
				n.stop(uid, fence.Grace, endFenced)
			}
		}
		n.watch()
	case lease.Unfence:
		if n.known && !n.stale && n.taken() || n.model.cfg.bug == bugUnfenceTooEarly {
			n.unfence()
		}
	}
}

// lateness is by how much fencing comes too late, in a deliberate bug.
func (m *Model) lateness() time.Duration {
	switch m.cfg.bug {
	case bugFenceLate:
		return 6 * time.Second
	case bugFenceSecondLate:
		return time.Second
	}
	return 0
}

// takenFor is that of peer/nodefence.go.
const takenFor = time.Second

// taken tells whether the node has stood in the store for long enough as one that is not lost.
func (n *node) taken() bool {
	switch stands, _ := n.model.standing(n, n.name); {
	case !stands:
		n.takenSince = -1
	case n.takenSince < 0:
		n.takenSince = n.model.now
	}
	return n.takenSince >= 0 && n.model.now-n.takenSince >= takenFor
}

func (n *node) unfence() {
	n.fenced = false
	n.model.note("%s is connected again", n.name)
	n.model.emit(Event{Kind: EventConnected, Node: n.name})
	for _, pod := range n.bound.byUID() {
		n.upsert(pod)
	}
}

// running lists what there is of pods, sorted.
func (n *node) running() []types.UID { return slices.Sorted(maps.Keys(n.pods)) }

// watch is the watchdog of runtime/containerd/fence: it kills what must never run twice when the peer does not. It looks only while a
// fault is on, and after it until the lease was renewed once, because otherwise it would never act: a machine that was slow may wait for
// long before it renews again, though it is slow no more.
func (n *node) watch() {
	if n.watched {
		return
	}
	n.watched = true
	n.model.after(500*time.Millisecond, "watchdog", n.guard)
}

func (n *node) guard() {
	m := n.model
	n.watched = false
	if !n.up {
		return
	}
	if m.now-n.heartbeat > fence.KillAfter+m.lateness() {
		for _, uid := range n.running() {
			if c := n.pods[uid]; c.identity && c.running {
				m.outcome.Fenced++
				m.note("the watchdog of %s kills %s/%s", n.name, c.pod.Namespace, c.pod.Name)
				delete(n.pods, uid)
				m.changedPod(c.pod.Namespace, n)
				n.fenced, n.takenSince = true, -1
				if !n.dead {
					n.report(c.pod)
				}
			}
		}
	}
	if !n.connected() || n.ails() || n.renewed <= max(n.befallen, n.booted) || m.now-n.heartbeat > 2*lease.RenewInterval {
		n.watch()
	}
}

// keepStatus keeps the Node object true.
func (n *node) keepStatus() {
	n.writeStatus()
	n.do(statusInterval, "status", n.keepStatus)
}

// writeStatus writes the Node object when it differs, and opens the ledger once it stands.
func (n *node) writeStatus() {
	m := n.model
	s := m.shards[0]
	key := kinds[0].prefix + n.name
	retry := func() { n.do(retryReport, "status", n.writeStatus) }
	if s.leaderFor(n) == nil {
		retry()
		return
	}
	stored, _ := s.objects[key].(*corev1.Node)
	if stored != nil && readiness(stored) == corev1.ConditionUnknown && !n.clock.lease.Heard(n.moment()) && m.cfg.bug != bugReadyUnheard {
		retry()
		return
	}
	want := n.describe(stored)
	if stored == nil || placement.NodeCondition(stored, corev1.NodeReady) == nil ||
		placement.NodeCondition(stored, corev1.NodeReady).Status != corev1.ConditionTrue {
		n.do(m.commitDelay(), "write status", func() {
			var changes []placement.Change
			if stored == nil {
				changes = append(changes, placement.Change{Verb: placement.Create, Object: want})
			}
			changes = append(changes, placement.Change{Verb: placement.UpdateStatus, Object: want})
			m.propose(n, s, changes, func(err error) {
				if err != nil {
					retry()
				}
			})
		})
		return
	}
	capacity := pods.Capacity{Allocatable: stored.Status.Allocatable}
	if m.cfg.bug == bugEverythingFits {
		capacity.Allocatable = plenty
	}
	n.ledger.SetCapacity(capacity)
}

// describe is the Node as its peer knows it, over what is stored.
func (n *node) describe(stored *corev1.Node) *corev1.Node {
	want := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{
		corev1.LabelHostname: n.name, corev1.LabelTopologyZone: n.zone,
	}}}
	if stored != nil {
		want = stored.DeepCopy()
	}
	want.Status.Capacity, want.Status.Allocatable = n.model.cfg.Allocatable, n.model.cfg.Allocatable
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastTransitionTime: metav1.NewTime(n.wall())}
	if have := placement.NodeCondition(want, corev1.NodeReady); have != nil {
		*have = ready
	} else {
		want.Status.Conditions = append(want.Status.Conditions, ready)
	}
	return want
}

// ask carries claims to a node and the answers back, as peer/claims.go and node.claim of peer/serve.go do.
func (m *Model) ask(from, to *node, s *shard, claims []pods.Claim, then func([]pods.Answer, placement.NodeUsage, error)) {
	answered := false
	from.do(claimTimeout, "claim timeout", func() {
		if !answered {
			answered = true
			then(nil, placement.NodeUsage{}, errNoAnswer)
		}
	})
	if to == nil {
		return
	}
	m.send(from, to, "claim", func() {
		answers := to.ledger.Claim(claims, to.monotonic())
		for _, claim := range claims {
			to.claimed[claim.PodUID] = m.now
		}
		m.changedRoom(to)
		usage := placement.NodeUsage{Node: to.name}
		to.ledger.Each(to.monotonic(), func(held pods.Claim) {
			if m.shardOf(held.Namespace) != s {
				usage.Granted.Add(placement.ResourcesOf(held.Requests))
				usage.Granted.Pods++
			}
		})
		m.send(to, from, "answer", func() {
			if !answered {
				answered = true
				then(answers, usage, nil)
			}
		})
	})
}

var errNoAnswer = fmt.Errorf("no answer within %s", claimTimeout)
