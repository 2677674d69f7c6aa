// Package schedule decides where pods run, with the semantics of kube-scheduler's default profile.
package schedule

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// DefaultName is the scheduler name whose pods are decided here; others are left alone.
const DefaultName = corev1.DefaultSchedulerName

// Decision is where one pod goes, or why it cannot go anywhere.
type Decision struct {
	Pod           *corev1.Pod
	Node          string         // empty if nothing fits
	Unschedulable *Unschedulable // nil if Node is set
}

// Unschedulable explains why no node fits. Decisions about equal pods may share one.
type Unschedulable struct {
	Nodes   int            // nodes looked at
	Reasons map[string]int // reason → nodes that gave it
	// Message is the text of the FailedScheduling event and of the PodScheduled condition.
	Message string
}

// Schedule decides pods in queue order (priority, then age) against one evolving picture: each
// sees the placements decided before it. Pods may be in the view or still to be created; those
// that have a node, are gated, terminating or another scheduler's are left out of the answer.
func Schedule(v *placement.View, pods []*corev1.Pod, now time.Time) []Decision {
	return nil
}

// Explanation is one node's answer to one pod.
type Explanation struct {
	Node    string
	Reasons []string         // why it does not fit; empty if it does
	Scores  map[string]int64 // by plugin name, normalised to 0…100 and weighted
	Total   int64
}

// Explain tells for every node, best first, how it suits the pod now.
func Explain(v *placement.View, pod *corev1.Pod, now time.Time) []Explanation { return nil }
