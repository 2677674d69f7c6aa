// Package repair decides what follows from lost, returning, drained and deleted nodes.
package repair

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// Options are the times and limits of repair; Defaults are what issue-level promises rest on.
type Options struct {
	LeaseTimeout  time.Duration // a node whose lease is older is lost
	Fencing       time.Duration // after a loss, when an isolated node has surely stopped its identity pods
	BrakeShare    float64       // of a zone's nodes
	BrakeNodes    int
	BrakeWindow   time.Duration
	NodeInterval  time.Duration // between the evictions of two lost nodes of one zone
	MaxDeletions  int           // per plan
	MaxTerminated int           // finished pods that are kept before the oldest are collected
}

// Defaults returns the default options.
func Defaults() Options {
	return Options{
		LeaseTimeout: 2 * time.Second, Fencing: 10 * time.Second,
		BrakeShare: 0.55, BrakeNodes: 3, BrakeWindow: time.Minute,
		NodeInterval: 500 * time.Millisecond, MaxDeletions: 500, MaxTerminated: 12500,
	}
}

// PlanNodes turns lease renewals into Ready conditions and taints. Only the meta leader calls it.
// Nodes without an entry in renewed are left alone.
func PlanNodes(v *placement.View, renewed map[string]time.Time, o Options, now time.Time) placement.Plan {
	return placement.Plan{}
}

// Brake says why evictions in a zone are held back.
type Brake struct {
	Zone        string
	Lost, Nodes int
	Reason      string
}

// Evictions is what PlanEvictions decides.
type Evictions struct {
	placement.Plan
	Brakes []Brake
}

// PlanEvictions deletes pods that must leave: by NoExecute taints, by lost or deleted nodes,
// and finished ones beyond the limit. Every shard leader calls it for its own pods.
func PlanEvictions(v *placement.View, o Options, now time.Time) Evictions { return Evictions{} }

// PlanNodePods is PlanEvictions for the pods of some nodes only.
func PlanNodePods(v *placement.View, nodes []types.NamespacedName, o Options, now time.Time) Evictions {
	return Evictions{}
}
