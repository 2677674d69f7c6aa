package schedule

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// candidate is a slot where a class would fit once the victims have gone.
type candidate struct {
	known    bool
	victims  []*placement.Pod // most important first; nil if the slot does not help
	hopeless []string         // why it does not
	// What slots are compared by, the most important first.
	violations int
	highest    int32
	sum        int64     // of the priorities, each raised above zero
	earliest   time.Time // start of the oldest victim of the highest priority
	budgeted   bool      // some victim is covered by a disruption budget
	rank       int32     // of the slot on the ring
}

// never tells whether the class's pods must not displace others.
func (c *class) never() bool {
	p := c.pod.Object.Spec.PreemptionPolicy
	return p != nil && *p == corev1.PreemptNever
}

// waitsForVictims tells whether victims of an earlier decision are still on their way out of the
// node nominated to the pod. More are not displaced until they are gone.
func (b *batch) waitsForVictims(c *class, pod *placement.Pod, r *refusals) bool {
	node, ok := b.view.Node(pod.Object.Status.NominatedNodeName)
	if !ok || node.Slot() < 0 || r.objections[node.Slot()].hopeless || r.objections[node.Slot()].reasons == nil {
		return false
	}
	waits := false
	b.eachOn(node.Slot(), func(p *placement.Pod) {
		waits = waits || corev1helpers.PodPriority(p.Object) < c.priority && goesForPreemption(p.Object)
	})
	return waits
}

func goesForPreemption(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp == nil {
		return false
	}
	condition := placement.PodCondition(pod, corev1.DisruptionTarget)
	return condition != nil && condition.Status == corev1.ConditionTrue && condition.Reason == corev1.PodReasonPreemptionByScheduler
}

// preempt chooses the slot whose victims cost least, and keeps its room for the pod. Without any
// it says why, in upstream's words.
func (b *batch) preempt(c *class, pod *placement.Pod, r *refusals) (*Preemption, string) {
	if b.budgets != nil && r.budgets != b.budgets.epoch {
		r.budgets = b.budgets.epoch
		for slot := range r.candidates {
			if r.candidates[slot].budgeted {
				r.drop(int32(slot))
				r.unasked = append(r.unasked, int32(slot))
			}
		}
	}
	for _, slot := range r.unasked {
		if o := &r.objections[slot]; o.reasons == nil || o.hopeless || r.candidates[slot].known {
			continue // it was asked for again, or has changed since
		}
		k := c.findVictims(int(slot), pod)
		k.rank = b.rankOf(slot)
		r.put(slot, k)
	}
	r.unasked = r.unasked[:0]
	slot, ok := r.cheapest(b.rankFrom(placement.Hash(string(pod.Object.UID))))
	if !ok {
		reasons := maps.Clone(r.unhelpful)
		if left := len(b.nodes) - r.asked; left > 0 {
			reasons[reasonNotHelpful] += left
		}
		return nil, message(len(b.nodes), "", reasons, "")
	}
	return b.displaceAt(c, pod, int(slot), &r.candidates[slot])
}

// cheapest is the slot whose victims cost least; among equal ones, the first at or after a place
// on the ring.
func (r *refusals) cheapest(rank int32) (slot int32, found bool) {
	first, ok := r.order.Min()
	if !ok {
		return 0, false
	}
	slot = first.slot
	r.order.Ascend(offer{first.candidate, rank, 0}, func(o offer) bool {
		if o.compare(first.candidate) == 0 {
			slot = o.slot
		}
		return false
	})
	return slot, true
}

// before orders offers by cost, then by place on the ring.
func (o offer) before(p offer) bool {
	return cmp.Or(o.compare(p.candidate), cmp.Compare(o.rank, p.rank)) < 0
}

// compare orders candidates as upstream does: fewer budgets violated; the highest priority among
// the victims lower; the sum of their priorities lower; fewer victims; those of the highest
// priority started later. What upstream leaves to chance is left to the ring.
func (k *candidate) compare(than *candidate) int {
	return cmp.Or(
		cmp.Compare(k.violations, than.violations),
		cmp.Compare(k.highest, than.highest),
		cmp.Compare(k.sum, than.sum),
		cmp.Compare(len(k.victims), len(than.victims)),
		than.earliest.Compare(k.earliest),
	)
}

// displaceAt dooms the victims of a slot and nominates it to the pod.
func (b *batch) displaceAt(c *class, pod *placement.Pod, slot int, k *candidate) (*Preemption, string) {
	p := &Preemption{Node: b.nodes[slot].Name, Violations: k.violations}
	for _, victim := range k.victims {
		p.Victims = append(p.Victims, victim.Object)
		if !b.doomed[victim.Object.UID] {
			b.doomed[victim.Object.UID] = true
			b.charge(victim.Object)
		}
	}
	for _, rival := range b.nominated[slot] {
		if corev1helpers.PodPriority(rival.Object) < c.priority && rival.Object.UID != pod.Object.UID {
			p.Displaced = append(p.Displaced, rival.Object)
		}
	}
	slices.SortFunc(p.Displaced, func(x, y *corev1.Pod) int { return cmp.Compare(x.UID, y.UID) })
	for _, rival := range p.Displaced {
		b.unnominate(rival.UID)
	}
	b.nominate(pod, slot)
	return p, fmt.Sprintf("found a potential placement for pod on node %s, preempting %d victims", p.Node, len(p.Victims))
}

// charge takes a disruption off the budgets that cover a pod.
func (b *batch) charge(pod *corev1.Pod) {
	for _, k := range b.budgetsIn(pod.Namespace) {
		if k.covers(pod) {
			k.allowed--
			k.counted[pod.Name] = true
			b.budgets.epoch++
		}
	}
}

// findVictims finds the fewest and least important pods that have to leave a slot. All of lower
// priority are thought away; if that helps, each is brought back that fits beside the pod, those
// protected by a budget first, the most important first.
func (c *class) findVictims(slot int, pod *placement.Pod) candidate {
	k := candidate{known: true}
	var potential []*placement.Pod
	c.batch.eachOn(slot, func(p *placement.Pod) {
		if corev1helpers.PodPriority(p.Object) < c.priority {
			potential = append(potential, p)
		}
	})
	if len(potential) == 0 {
		k.hopeless = []string{reasonNoVictims}
		return k
	}
	rivals := without(c.batch.rivals(slot, c.priority, ""), pod.Object.UID)
	t := c.newTrial(slot)
	for _, p := range potential {
		t.remove(p)
	}
	if o := t.judgeBeside(rivals); o.reasons != nil {
		k.hopeless = o.reasons
		return k
	}
	slices.SortFunc(potential, c.batch.moreImportant)
	protected, others := c.batch.split(potential, &k)
	bringBack := func(pods []*placement.Pod) (left []*placement.Pod) {
		for _, p := range pods {
			t.add(p)
			if o := t.judgeBeside(rivals); o.reasons != nil {
				t.remove(p)
				left = append(left, p)
			}
		}
		return left
	}
	k.victims = bringBack(protected)
	k.violations = len(k.victims)
	k.victims = append(k.victims, bringBack(others)...)
	if len(k.victims) == 0 {
		// The pod would fit as things are: only pods that gave up their room in between can make that so.
		k.victims, k.hopeless = nil, []string{reasonNoVictims}
		return k
	}
	slices.SortFunc(k.victims, c.batch.moreImportant)
	k.weigh(c.batch)
	return k
}

// weigh fills in what candidates are compared by.
func (k *candidate) weigh(b *batch) {
	k.highest = corev1helpers.PodPriority(k.victims[0].Object)
	k.earliest = b.started(k.victims[0].Object)
	for _, p := range k.victims {
		priority := corev1helpers.PodPriority(p.Object)
		k.sum += int64(priority) + math.MaxInt32 + 1
		if started := b.started(p.Object); priority == k.highest && started.Before(k.earliest) {
			k.earliest = started
		}
	}
}

// moreImportant orders pods by priority, then by age; those that have not started are the youngest.
func (b *batch) moreImportant(x, y *placement.Pod) int {
	return cmp.Or(
		cmp.Compare(corev1helpers.PodPriority(y.Object), corev1helpers.PodPriority(x.Object)),
		b.started(x.Object).Compare(b.started(y.Object)),
		cmp.Compare(x.Object.UID, y.Object.UID),
	)
}

func (b *batch) started(pod *corev1.Pod) time.Time {
	if pod.Status.StartTime == nil {
		return b.now
	}
	return pod.Status.StartTime.Time
}

// split parts the pods that a budget protects from the others. A budget lets go as many as it
// allows, the most important first. Of pods of other shards the budgets are not known here; all
// that could have one are taken for protected.
func (b *batch) split(pods []*placement.Pod, k *candidate) (protected, others []*placement.Pod) {
	charged := map[*budget]int32{}
	violates := func(pod *corev1.Pod) bool {
		for _, budget := range b.budgetsIn(pod.Namespace) {
			if !budget.covers(pod) {
				continue
			}
			k.budgeted = true
			if charged[budget]++; charged[budget] > budget.allowed {
				return true
			}
		}
		return false
	}
	for _, p := range pods {
		switch {
		case b.doomed[p.Object.UID]:
			others = append(others, p)
		case len(p.Object.Labels) > 0 && b.isForeign(p), violates(p.Object):
			protected = append(protected, p)
		default:
			others = append(others, p)
		}
	}
	return protected, others
}

// isForeign tells whether a pod that is on a node belongs to another shard.
func (b *batch) isForeign(p *placement.Pod) bool {
	if known, ok := b.view.Pod(p.Object.Namespace, p.Object.Name); ok {
		return known.Object.UID != p.Object.UID
	}
	return p.Object.Spec.NodeName != ""
}

// judgeBeside judges the trial as if the rivals were there too, and, where their absence could
// matter, without them.
func (t *trial) judgeBeside(rivals []*placement.Pod) objection {
	if len(rivals) > 0 {
		for _, p := range rivals {
			t.add(p)
		}
		o := t.judge()
		for _, p := range rivals {
			t.undo(p)
		}
		if o.reasons != nil || !t.class.constrained() && !t.class.perNode() {
			return o
		}
	}
	return t.judge()
}

// undo takes back the adding of a pod.
func (t *trial) undo(p *placement.Pod) {
	t.added = slices.DeleteFunc(t.added, func(q *placement.Pod) bool { return q == p })
	t.shift(p, -1)
}
