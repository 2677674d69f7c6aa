package repair

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

const nodeComponent = "node-controller"

// Judge turns leases into judgements on nodes for one meta leader. It remembers which nodes it has found to be as they should be, so that
// asking several times a second about every node costs a look at its lease. The zero Judge has seen none. It has one owner.
type Judge struct {
	calm map[string]*corev1.Node // by name: the version that needs no change while its lease is kept
}

// PlanNodes turns lease renewals and node conditions into conditions and taints. renewed holds
// when each node last renewed its lease, by the meta leader's own clock; nodes without an entry
// are not judged by it. After taking over, a leader should enter every node as renewed just now.
// What the Judge remembers makes no difference to the plan.
func (j *Judge) PlanNodes(v *placement.View, renewed map[string]time.Time, o Options, now time.Time) placement.Plan {
	var plan placement.Plan
	for _, n := range j.unsettled(v, renewed, o, now, &plan) {
		if len(plan.Changes) >= o.MaxChanges {
			plan.RecheckAt(now)
			break
		}
		want := n.Object.DeepCopy()
		if last, ok := renewed[n.Name]; ok && !last.Add(o.LeaseTimeout).After(now) {
			markUnknown(want, now)
		}
		setTaints(want, now)
		addNodeChanges(&plan, n.Object, want)
	}
	return plan
}

// unsettled are the nodes that need a change, sorted by name. The plan is told when the next lease of another one runs out.
func (j *Judge) unsettled(v *placement.View, renewed map[string]time.Time, o Options, now time.Time, plan *placement.Plan) []*placement.Node {
	if j.calm == nil || len(j.calm) > 2*len(v.Slots()) {
		j.calm = make(map[string]*corev1.Node, len(v.Slots())) // nodes that are gone are forgotten
	}
	var nodes []*placement.Node
	for _, n := range v.Slots() {
		late := false
		if last, ok := renewed[n.Name]; ok {
			due := last.Add(o.LeaseTimeout)
			if late = !due.After(now); !late {
				plan.RecheckAt(due)
			}
		}
		switch {
		case !late && j.calm[n.Name] == n.Object:
		case !settled(n.Object, late):
			nodes = append(nodes, n)
		case !late:
			j.calm[n.Name] = n.Object
		}
	}
	slices.SortFunc(nodes, func(a, b *placement.Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// Broken names the nodes that the view, or the plan, says are lost. A node that renews its lease while it is among them has not kept it: others
// may be replacing its pods, so it must go on as if nobody heard it until it has made itself ready again. It may be unable to, for
// instance because its clock is so far off that it must not write.
func Broken(v *placement.View, plan placement.Plan) map[string]bool {
	broken := map[string]bool{}
	for _, n := range v.Nodes() {
		if n.Lost() {
			broken[n.Name] = true
		}
	}
	for _, change := range plan.Changes {
		if change.Verb == placement.UpdateStatus {
			broken[change.Object.GetName()] = true
		}
	}
	return broken
}

// addNodeChanges writes conditions and taints, which are different writes of the API. Conditions
// come first: they are what endpoints react to.
func addNodeChanges(plan *placement.Plan, seen, want *corev1.Node) {
	version := seen.ResourceVersion
	if !apiequality.Semantic.DeepEqual(seen.Status, want.Status) {
		c := placement.Updating(placement.UpdateStatus, seen, want, placement.Event{
			Regarding: seen, Type: corev1.EventTypeNormal, Reason: "NodeNotReady", Component: nodeComponent,
			Message: "Node " + seen.Name + " status is now: NodeNotReady",
		})
		plan.Add(c)
		version = ""
	}
	if !apiequality.Semantic.DeepEqual(seen.Spec, want.Spec) {
		c := placement.Updating(placement.Update, seen, want)
		c.ResourceVersion = version
		plan.Add(c)
	}
}

// settled tells whether a node needs no change: late ones are marked, taints are as conditions
// ask for, and dated.
func settled(node *corev1.Node, late bool) bool {
	if late {
		for _, kind := range unknownKinds {
			if c := placement.NodeCondition(node, kind); c == nil || c.Status != corev1.ConditionUnknown {
				return false
			}
		}
	}
	for _, t := range conditionTaints(node) {
		if placement.HasTaint(node, t.key, t.effect) != t.on {
			return false
		}
	}
	for i := range node.Spec.Taints {
		if t := &node.Spec.Taints[i]; t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded == nil {
			return false
		}
	}
	return true
}

// unknownKinds are the conditions that only the node itself can tell.
var unknownKinds = [...]corev1.NodeConditionType{
	corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
}

// markUnknown says that nobody knows any more how the node is.
func markUnknown(node *corev1.Node, now time.Time) {
	for _, kind := range unknownKinds {
		c := placement.NodeCondition(node, kind)
		if c == nil {
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastTransitionTime: metav1.NewTime(now),
			})
			continue
		}
		if c.Status != corev1.ConditionUnknown {
			c.Status, c.Reason = corev1.ConditionUnknown, "NodeStatusUnknown"
			c.Message, c.LastTransitionTime = "Kubelet stopped posting node status.", metav1.NewTime(now)
		}
	}
}

// conditionTaint is a taint that a node is to have or not to have.
type conditionTaint struct {
	key    string
	effect corev1.TaintEffect
	on     bool
}

// conditionTaints are the taints that follow from a node's conditions.
// Source: "Taint nodes by condition", kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration.
func conditionTaints(node *corev1.Node) [9]conditionTaint {
	is := func(kind corev1.NodeConditionType, status corev1.ConditionStatus) bool {
		c := placement.NodeCondition(node, kind)
		return c != nil && c.Status == status
	}
	unreachable := is(corev1.NodeReady, corev1.ConditionUnknown)
	notReady := !unreachable && !is(corev1.NodeReady, corev1.ConditionTrue)
	// A node that has never reported is kept free of pods, but nothing is evicted from it.
	evict := notReady && placement.NodeCondition(node, corev1.NodeReady) != nil
	return [9]conditionTaint{
		{corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule, unreachable},
		{corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute, unreachable},
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, notReady},
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute, evict},
		{corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule, is(corev1.NodeMemoryPressure, corev1.ConditionTrue)},
		{corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule, is(corev1.NodeDiskPressure, corev1.ConditionTrue)},
		{corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule, is(corev1.NodePIDPressure, corev1.ConditionTrue)},
		{corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule, is(corev1.NodeNetworkUnavailable, corev1.ConditionTrue)},
		{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule, node.Spec.Unschedulable},
	}
}

// setTaints makes the taints that follow from conditions true, and dates NoExecute taints that
// users have set, because tolerationSeconds count from that date.
func setTaints(node *corev1.Node, now time.Time) {
	for _, t := range conditionTaints(node) {
		setTaint(node, t.key, t.effect, t.on, now)
	}
	for i := range node.Spec.Taints {
		if t := &node.Spec.Taints[i]; t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded == nil {
			t.TimeAdded = timestamp(now)
		}
	}
}

func setTaint(node *corev1.Node, key string, effect corev1.TaintEffect, on bool, now time.Time) {
	switch has := placement.HasTaint(node, key, effect); {
	case on && !has:
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: key, Effect: effect, TimeAdded: timestamp(now)})
	case !on && has:
		node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == key && t.Effect == effect
		})
	}
}

func timestamp(now time.Time) *metav1.Time {
	t := metav1.NewTime(now)
	return &t
}
