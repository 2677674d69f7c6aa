package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/endpoints"
	"shoal/placement/repair"
	"shoal/placement/schedule"
	"shoal/placement/workload"
	"shoal/runtime/pods"
)

// leader takes the turns of one data shard, as peer/leader.go and peer/place.go do: plan, claim room, commit, and only then look again.
type leader struct {
	model   *Model
	shard   *shard
	node    *node
	view    *placement.View
	due     map[placement.Ref]time.Time
	waiting bool
	closed  map[string]closedNode
	stale   bool // something of the meta shard was missed
	busy    bool // a turn is under way
	woken   bool
	timer   time.Time // when it will be woken in any case
}

type closedNode struct {
	usage placement.NodeUsage
	until time.Time
}

// piece is one plan, and what it was made for.
type piece struct {
	ref  placement.Ref
	plan placement.Plan
}

var evictionRef = placement.Ref{Kind: "Eviction"}

// Times of peer/leader.go, peer/place.go and peer/claims.go.
const (
	retryPlan     = time.Second
	retryClaim    = 100 * time.Millisecond
	avoidRefusing = time.Second
	claimTimeout  = 2 * time.Second
)

// thinking is what planning takes; it keeps two turns apart.
const thinking = time.Millisecond

func newLeader(m *Model, s *shard, n *node) *leader {
	l := &leader{model: m, shard: s, node: n, due: map[placement.Ref]time.Time{evictionRef: {}}, closed: map[string]closedNode{}}
	l.read()
	return l
}

// read makes the view anew: nodes first.
func (l *leader) read() {
	l.view, l.stale = placement.NewView(), false
	for _, s := range []*shard{l.model.shards[0], l.shard} {
		for _, key := range slices.Sorted(maps.Keys(s.objects)) {
			l.view.Upsert(s.objects[key])
		}
	}
}

func (l *leader) leads() bool { return l.shard.turns == l }

func (l *leader) learn(before, now placement.Object, gone bool) {
	if gone {
		l.view.Delete(before)
	} else {
		l.view.Upsert(now)
	}
	l.wake()
}

// wake asks for a turn.
func (l *leader) wake() {
	if l.busy || l.woken {
		return
	}
	l.woken = true
	l.node.do(thinking, "turn", func() {
		if l.leads() {
			l.woken = false
			l.turn()
		}
	})
}

// wakeAt asks for a turn at a time, unless an earlier one is asked for already.
func (l *leader) wakeAt(at time.Time) {
	now := l.model.time()
	if at.IsZero() || l.timer.After(now) && !at.Before(l.timer) {
		return
	}
	l.timer = at
	l.node.do(max(at.Sub(now), 0), "timer", func() {
		if l.leads() {
			l.wake()
		}
	})
}

func (l *leader) recheck(ref placement.Ref, at time.Time) {
	if at.IsZero() {
		return
	}
	if have, ok := l.due[ref]; !ok || at.Before(have) {
		l.due[ref] = at
	}
}

// turn takes every decision that is due, once.
func (l *leader) turn() {
	if l.stale && l.model.shards[0].leader != nil && l.model.reaches(l.model.shards[0].leader, l.node) {
		l.read()
	}
	now := l.model.time()
	for _, name := range slices.Sorted(maps.Keys(l.closed)) {
		if !l.closed[name].until.After(now) {
			l.setUsage(l.closed[name].usage)
			delete(l.closed, name)
		}
	}
	for _, ref := range l.view.TakeDirty() {
		l.due[ref] = time.Time{}
	}
	work := l.plan(l.takeDue(now), now)
	decisions := l.decide(work, now)
	l.busy = true
	l.claim(decisions, func(refused map[types.UID]bool) { l.propose(work, decisions, refused) })
}

// takeDue is sorted, so that turns do not depend on the order of a map.
func (l *leader) takeDue(now time.Time) []placement.Ref {
	var refs []placement.Ref
	for ref, at := range l.due {
		if !at.After(now) {
			refs = append(refs, ref)
			delete(l.due, ref)
		}
	}
	slices.SortFunc(refs, func(a, b placement.Ref) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return refs
}

func (l *leader) plan(refs []placement.Ref, now time.Time) []piece {
	var work []piece
	evict := false
	for _, ref := range refs {
		var plan placement.Plan
		switch ref.Kind {
		case placement.KindService:
			if l.model.cfg.bug != bugEndpointsKept || !l.anyLost() {
				plan = endpoints.Plan(l.view, ref.NamespacedName, now)
			}
		case placement.KindNode:
			evict, l.waiting = true, true
		case evictionRef.Kind:
			evict = true
		case placement.KindPod:
			l.waiting = true
		case placement.KindStatefulSet:
			plan = planStatefulSet(l.view, ref, now)
		default:
			plan = workload.Plan(l.view, ref, now)
		}
		l.recheck(ref, plan.Recheck)
		if len(plan.Changes) > 0 {
			work = append(work, piece{ref, plan})
		}
	}
	if evict && l.model.cfg.bug != bugNoEvictions {
		work = append(work, l.evict(now)...)
	}
	return work
}

func (l *leader) anyLost() bool {
	return slices.ContainsFunc(l.view.Nodes(), (*placement.Node).Lost)
}

func (l *leader) evict(now time.Time) []piece {
	evictions := repair.PlanEvictions(l.view, l.model.repair, now)
	for _, brake := range evictions.Brakes {
		if !l.model.outcome.Braked[brake.Zone] {
			l.model.note("evictions are held back: %s", brake.Reason)
		}
		l.model.outcome.Braked[brake.Zone] = true
	}
	l.recheck(evictionRef, evictions.Recheck)
	work := make([]piece, 0, len(evictions.Changes))
	for _, change := range evictions.Changes {
		work = append(work, piece{evictionRef, placement.Plan{Changes: []placement.Change{change}}})
	}
	return work
}

// decide finds nodes for the pods that wait and for those that this turn's plans create.
func (l *leader) decide(work []piece, now time.Time) []schedule.Decision {
	var candidates []*corev1.Pod
	for _, piece := range work {
		for _, change := range piece.plan.Changes {
			if pod, ok := change.Object.(*corev1.Pod); ok && change.Verb == placement.Create {
				candidates = append(candidates, pod)
			}
		}
	}
	if l.waiting {
		l.waiting = false
		for _, pod := range l.view.Pending() {
			candidates = append(candidates, pod.Object)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	return schedule.Schedule(l.view, candidates, now)
}

// claim asks every chosen node, all at once, and goes on when all have answered or were waited for long enough.
func (l *leader) claim(decisions []schedule.Decision, then func(refused map[types.UID]bool)) {
	byNode := map[string][]pods.Claim{}
	for _, decision := range decisions {
		if decision.Node != "" {
			byNode[decision.Node] = append(byNode[decision.Node], pods.ClaimOf(decision.Pod))
		}
	}
	refused := map[types.UID]bool{}
	open := len(byNode)
	if open == 0 {
		then(refused)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(byNode)) {
		claims := byNode[name]
		l.model.ask(l.node, l.model.byName[name], l.shard, claims, func(answers []pods.Answer, usage placement.NodeUsage, err error) {
			if !l.leads() {
				return
			}
			l.takeAnswers(name, claims, answers, usage, err, refused)
			if open--; open == 0 {
				then(refused)
			}
		})
	}
}

func (l *leader) takeAnswers(name string, claims []pods.Claim, answers []pods.Answer, usage placement.NodeUsage, err error, refused map[types.UID]bool) {
	if err != nil {
		l.model.note("shard %d: %s does not answer %d claims", l.shard.number, name, len(claims))
		for _, claim := range claims {
			refused[claim.PodUID] = true
		}
		return
	}
	l.setUsage(usage)
	for i, answer := range answers {
		if answer.Granted {
			continue
		}
		l.model.outcome.Refused++
		l.model.note("shard %d: %s refuses %s/%s: %v", l.shard.number, name, claims[i].Namespace, claims[i].Name, answer.Reasons)
		refused[answer.PodUID] = true
		l.closed[name] = closedNode{usage: usage, until: l.model.time().Add(avoidRefusing)}
		if node, ok := l.view.Node(name); ok {
			full := usage
			full.Granted = usage.Granted.Plus(node.Allocatable)
			l.setUsage(full)
		}
	}
}

func (l *leader) setUsage(usage placement.NodeUsage) {
	if l.model.cfg.bug != bugEverythingFits {
		l.view.SetUsage(usage)
	}
}

// propose commits every plan as a transaction of its own.
func (l *leader) propose(work []piece, decisions []schedule.Decision, refused map[types.UID]bool) {
	created := map[types.UID]*placement.Change{}
	for _, piece := range work {
		for i := range piece.plan.Changes {
			if pod, ok := piece.plan.Changes[i].Object.(*corev1.Pod); ok && piece.plan.Changes[i].Verb == placement.Create {
				created[pod.UID] = &piece.plan.Changes[i]
			}
		}
	}
	now := l.model.time()
	for _, decision := range decisions {
		pod := decision.Pod
		change, isNew := created[pod.UID]
		key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
		switch {
		case decision.Node != "" && refused[pod.UID]:
			l.recheck(placement.Ref{Kind: placement.KindPod, NamespacedName: key}, now.Add(retryClaim))
		case decision.Node != "" && isNew:
			change.Object.(*corev1.Pod).Spec.NodeName = decision.Node
		case decision.Node != "":
			bound := pod.DeepCopy()
			bound.Spec.NodeName = decision.Node
			plan := placement.Plan{Changes: []placement.Change{placement.Updating(placement.Bind, pod, bound)}}
			work = append(work, piece{placement.Ref{Kind: placement.KindPod, NamespacedName: key}, plan})
		}
	}
	if len(work) == 0 {
		l.rest()
		return
	}
	l.node.do(l.model.commitDelay(), "commit", func() {
		if !l.leads() {
			return
		}
		for _, piece := range work {
			if err := l.model.commit(l.node, l.shard, piece.plan.Changes); err != nil {
				l.model.note("shard %d: %s %s is overtaken: %s", l.shard.number, piece.ref.Kind, piece.ref.NamespacedName, err)
				l.recheck(piece.ref, l.model.time().Add(retryPlan))
			}
		}
		l.rest()
	})
}

// rest ends a turn, and asks for the next one.
func (l *leader) rest() {
	l.busy = false
	l.wakeIfDirty()
	var next time.Time
	earlier := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) { // what is due at once has its turn already
			next = at
		}
	}
	for _, at := range l.due {
		earlier(at)
	}
	for _, node := range l.closed {
		earlier(node.until)
	}
	if l.stale {
		earlier(l.model.time().Add(retryPlan))
	}
	l.wakeAt(next)
}

// wakeIfDirty keeps what is dirty for the next turn.
func (l *leader) wakeIfDirty() {
	dirty := l.view.TakeDirty()
	for _, ref := range dirty {
		l.due[ref] = time.Time{}
	}
	if len(dirty) > 0 {
		l.wake()
	}
}

// planStatefulSet stands in for upstream's StatefulSet controller, which production runs as it is: whichever of its pods is missing is made
// again under its name. Scaling and updates are not simulated.
func planStatefulSet(v *placement.View, ref placement.Ref, now time.Time) placement.Plan {
	var plan placement.Plan
	set, ok := v.StatefulSets.Get(ref.Namespace, ref.Name)
	if !ok {
		return plan
	}
	names := placement.NewNames(string(set.UID), now.String())
	for i := range int(*set.Spec.Replicas) {
		name := fmt.Sprintf("%s-%d", set.Name, i)
		if _, there := v.Pod(set.Namespace, name); !there {
			plan.Add(placement.Change{Verb: placement.Create, Object: statefulPod(set, name, names.UID())})
		}
	}
	return plan
}
