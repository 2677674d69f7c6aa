// Package repair decides what follows from lost, unready, tainted and deleted nodes.
//
// Two leaders share the work. The meta leader, which nodes renew their leases with, runs
// PlanNodes: conditions and taints. Every shard's leader runs PlanEvictions for its own pods. The
// node objects carry everything from the one to the other, times included, so that both are
// stateless: a new leader goes on where the old one stopped.
//
// Repair never runs a pod twice where that could do harm. A pod with an identity — of a
// StatefulSet, or with a volume that only one node may use — is given up on a lost node only when
// the fencing time is over, by when an isolated node has stopped it. Others are replaced at once.
package repair

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// Options are the times and limits of repair.
type Options struct {
	// LeaseTimeout is the age of a lease at which its node is lost.
	LeaseTimeout time.Duration
	// Fencing is how long after a loss an isolated node has surely stopped its identity pods. It
	// must exceed the time a node takes to notice and to stop them, and the clocks' bound.
	Fencing time.Duration
	// More than BrakeShare of a zone's nodes, and at least BrakeNodes, lost within BrakeWindow
	// look like a fault of the network or of ours rather than of the nodes: nobody is evicted.
	BrakeShare  float64
	BrakeNodes  int
	BrakeWindow time.Duration
	// TakeoverGrace is what a new leader gives the nodes that it finds lost to say that they are back.
	TakeoverGrace time.Duration
	// NodeInterval is the pause between the evictions of two lost nodes of one zone, also when a brake has come off.
	NodeInterval time.Duration
	// MaxChanges bounds one plan.
	MaxChanges int
	// MaxTerminated is how many finished pods are kept before the oldest are collected.
	MaxTerminated int
}

// Defaults returns the default options.
func Defaults() Options {
	return Options{
		LeaseTimeout: 2 * time.Second, Fencing: 10 * time.Second,
		BrakeShare: 0.55, BrakeNodes: 3, BrakeWindow: time.Minute,
		TakeoverGrace: 3 * time.Second, NodeInterval: 500 * time.Millisecond, MaxChanges: 500, MaxTerminated: 12500,
	}
}

// lostAt is when a lost node was noted as lost.
func lostAt(n *placement.Node) time.Time {
	for i := range n.Object.Spec.Taints {
		t := &n.Object.Spec.Taints[i]
		if t.Key == corev1.TaintNodeUnreachable && t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded != nil {
			return t.TimeAdded.Time
		}
	}
	if c := placement.NodeCondition(n.Object, corev1.NodeReady); c != nil {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}
