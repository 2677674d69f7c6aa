// Package schedule decides where pods run, with the semantics of kube-scheduler's default
// profile (Kubernetes v1.37): the same filters in the same order, the same scores with the same
// weights, the same texts. Unlike kube-scheduler it looks at every node, takes many pods in one
// call, and answers equal pods from one shared set of per-node results, of which a placement
// invalidates only what it touched.
//
// Cost: the first pod of a kind costs one look at each node and at each pod its constraints could
// be about; every further equal pod costs a sum per feasible node.
package schedule

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// DefaultName is the scheduler name whose pods are decided here; others are left alone.
const DefaultName = corev1.DefaultSchedulerName

// Decision is where one pod goes, or why it cannot go anywhere.
type Decision struct {
	Pod *corev1.Pod
	// Node is empty if nothing fits.
	Node string
	// Unschedulable is nil if Node is set.
	Unschedulable *Unschedulable
	// Provision names the pod's claims whose volumes wait for its node: they are to get the
	// annotation volume.kubernetes.io/selected-node together with the binding.
	Provision []types.NamespacedName
}

// Unschedulable explains why no node fits. Decisions about equal pods may share one.
type Unschedulable struct {
	Nodes   int            // nodes in the cluster
	Reasons map[string]int // reason → nodes that gave it; a node can give several
	// Message is the text of the FailedScheduling event and of the PodScheduled condition.
	Message string
}

// Schedule decides pods in queue order (priority, then age, then UID) against one evolving
// picture: each sees the placements decided before it. Pods may be in the view or still to be
// created. Those that have a node, are gated, finished, terminating or another scheduler's are
// left out of the answer. The view is not changed.
func Schedule(v *placement.View, pods []*corev1.Pod, _ time.Time) []Decision {
	b := newBatch(v)
	queue := waiting(pods)
	decisions := make([]Decision, 0, len(queue))
	for _, pod := range queue {
		decisions = append(decisions, b.decide(pod))
	}
	return decisions
}

// Explanation is one node's answer to one pod.
type Explanation struct {
	Node    string
	Reasons []string         // why it does not fit; empty if it does
	Scores  map[string]int64 // by upstream's plugin name: 0…100 times the plugin's weight
	Total   int64
}

// Explain tells for every node, best first, how it suits the pod now. It answers for any pod,
// also for one that is placed already, as if it were to be placed again beside itself.
func Explain(v *placement.View, pod *corev1.Pod, _ time.Time) []Explanation {
	b := newBatch(v)
	pod = pod.DeepCopy()
	pod.Spec.NodeName = ""
	c := b.classOf(placement.NewPod(pod))
	return c.explain()
}

// waiting selects and orders the pods to decide.
func waiting(pods []*corev1.Pod) []*placement.Pod {
	var queue []*placement.Pod
	for _, pod := range pods {
		if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil || placement.Finished(pod) ||
			len(pod.Spec.SchedulingGates) > 0 || cmp.Or(pod.Spec.SchedulerName, DefaultName) != DefaultName {
			continue
		}
		queue = append(queue, placement.NewPod(pod))
	}
	slices.SortStableFunc(queue, func(a, b *placement.Pod) int {
		return cmp.Or(
			cmp.Compare(corev1helpers.PodPriority(b.Object), corev1helpers.PodPriority(a.Object)),
			a.Object.CreationTimestamp.Compare(b.Object.CreationTimestamp.Time),
			cmp.Compare(a.Object.UID, b.Object.UID),
		)
	})
	return queue
}
