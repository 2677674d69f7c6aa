package placement

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeUsage is what a node has granted to pods that this view does not hold: pods of other
// shards. The node itself reports it (with the answer to a claim, and when it changes), because
// the node has the last word on its capacity.
type NodeUsage struct {
	Node    string
	Granted Resources // Pods is the number of those pods
	Ports   []HostPort
	// Pods are those of them that the node knows as objects; what they take is part of Granted
	// and Ports. Inter-pod affinity sees them, and preemption may choose them. Of each, only
	// metadata (namespace, name, UID, version, labels, owner, deletion), priority, node name, affinity, requests, host
	// ports and start time count, so a report may leave out the rest.
	Pods []*corev1.Pod
}

// noUsage is what a node reports that runs nothing of others. It is never written to.
var noUsage NodeUsage

// Close keeps pods from a node for now, for a reason that its report does not show: say why in words for users.
func (v *View) Close(node, why string) {
	if n := v.nodes[node]; n != nil {
		n.closed = why
	}
}

// Reopen undoes Close. It marks the node: pods that fitted nowhere may fit now.
func (v *View) Reopen(node string) {
	if n := v.nodes[node]; n != nil && n.closed != "" {
		n.closed = ""
		v.mark(KindNode, types.NamespacedName{Name: node})
	}
}

// SetUsage records what a node granted to pods of other shards. It replaces the last report.
// Only a report that leaves more room than the last one marks the node: pods that fitted nowhere
// may fit now.
func (v *View) SetUsage(u NodeUsage) {
	n := v.nodeEntry(u.Node)
	if u.freesAny(*n.foreign) {
		v.mark(KindNode, types.NamespacedName{Name: u.Node})
	}
	v.takeOutGranted(n)
	n.foreign = &u
	v.setStrangers(n, u.Pods)
	n.Requested.Add(u.Granted)
	n.ScoredMilliCPU += u.Granted.MilliCPU
	n.ScoredMemory += u.Granted.Memory
	v.forgetNode(n)
}

// setStrangers makes the pods of a report those that the node is known to run for others. A node answers every claim with all of them, of
// which one or two are new, so what was counted before and has not changed stays.
func (v *View) setStrangers(n *Node, reported []*corev1.Pod) {
	before := make(map[types.UID]*Pod, len(n.strangers))
	for _, p := range n.strangers {
		if twice := before[p.Object.UID]; twice != nil { // a node may report nonsense
			v.countOut(twice, n)
		}
		before[p.Object.UID] = p
	}
	strangers := make([]*Pod, 0, len(reported))
	for _, pod := range reported {
		if _, own := v.pods[keyOf(pod)]; own || Finished(pod) {
			continue
		}
		p := before[pod.UID]
		if p != nil && sameStranger(p.Object, pod) {
			delete(before, pod.UID)
		} else {
			p = NewPod(pod)
			v.countIn(p, n)
		}
		strangers = append(strangers, p)
	}
	for _, p := range before {
		v.countOut(p, n)
	}
	n.strangers = strangers
}

// sameStranger tells whether two reports say the same of a pod. Only one that tells the version of the object can.
func sameStranger(a, b *corev1.Pod) bool {
	return a.ResourceVersion != "" && a.ResourceVersion == b.ResourceVersion && keyOf(a) == keyOf(b)
}

// freesAny tells whether u holds less of anything than an earlier report did.
func (u NodeUsage) freesAny(before NodeUsage) bool {
	a, b := u.Granted, before.Granted
	if a.MilliCPU < b.MilliCPU || a.Memory < b.Memory || a.EphemeralStorage < b.EphemeralStorage || a.Pods < b.Pods {
		return true
	}
	for name, amount := range b.Scalar {
		if a.Scalar[name] < amount {
			return true
		}
	}
	return slices.ContainsFunc(before.Ports, func(p HostPort) bool { return !slices.Contains(u.Ports, p) })
}

// dropUsage takes the node's last report out of its sums.
func (v *View) dropUsage(n *Node) {
	v.setStrangers(n, nil)
	v.takeOutGranted(n)
	n.foreign = &noUsage
}

// takeOutGranted takes what the last report says is granted out of the node's sums.
func (v *View) takeOutGranted(n *Node) {
	n.Requested.Sub(n.foreign.Granted)
	n.ScoredMilliCPU -= n.foreign.Granted.MilliCPU
	n.ScoredMemory -= n.foreign.Granted.Memory
}
