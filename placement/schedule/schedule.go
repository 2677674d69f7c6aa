// Package schedule decides where pods run, with the semantics of kube-scheduler's default
// profile (Kubernetes v1.37): the same filters in the same order, the same scores with the same
// weights, the same texts, the same preemption. Unlike kube-scheduler it looks at every node and
// takes many pods in one call. placement/schedule/oracle compares the two and names what is
// different on purpose; placement/schedule/perf measures.
//
// Cost, for N nodes:
//
//   - A call copies what it may change of each node: O(N).
//   - The first pod of a kind costs a look at each node, one at each different set of labels in the
//     namespaces that its constraints are about (not at each pod), and one at each different inter-pod
//     affinity in the cluster. Pods are of one kind if nothing that filters or scores read differs;
//     labels and owners that nobody's constraints are about do not count.
//   - A further pod of the kind costs a look at each group of nodes and O(log N). Nodes are in one
//     group if they differ for the kind in nothing but their room: same zone where zones matter, same
//     counts on the node where host names do, same preferences. Groups are few, and N at worst.
//   - A constraint adds a counter per domain, moved by each placement; it multiplies groups only.
//   - Preemption costs the first pod of a kind a trial per node; a further one O(log N), unless the kind
//     has constraints that look beyond a node, which cost a trial per node each time.
//   - Pods with volume claims, or disks named in their spec, are a kind of their own each.
//
// Pods of other shards are known as far as nodes have reported them (placement.NodeUsage), which is
// when they were last asked for room. Spreading needs only pods of the pod's own namespace, and so of
// the own shard, and is exact. Inter-pod affinity with namespaces of other shards sees what was
// reported. Disruption budgets of other shards are not known: their pods are displaced last.
package schedule

import (
	"cmp"
	"slices"
	"strings"
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
	// Preempt is set if nothing fits, but would on one node once pods of lower priority have left it.
	Preempt *Preemption
	// Withdraw tells that the pod's status.nominatedNodeName leads nowhere any more and is to be
	// cleared. It is never set together with Preempt, whose node replaces the old one.
	Withdraw bool
	// Provision names the pod's claims whose volumes wait for its node: they are to get the
	// annotation volume.kubernetes.io/selected-node together with the binding.
	Provision []types.NamespacedName
	// Bind gives existing volumes to claims that waited for the pod's node: each volume's
	// spec.claimRef is to name the claim, before or together with the binding.
	Bind []VolumeBinding
}

// VolumeBinding gives a volume to a claim.
type VolumeBinding struct {
	Claim  types.NamespacedName
	Volume string
}

// Preemption makes room for a pod. The pod is not bound by it: it gets status.nominatedNodeName,
// which keeps the room for it, and is decided again when the victims have gone.
type Preemption struct {
	Node string
	// Victims are to be deleted with their own grace periods, after they got the condition
	// DisruptionTarget with reason PreemptionByScheduler; most important first. Those with a
	// deletion timestamp are on their way already and need nothing. Pods of other shards are as
	// the node reported them: namespace, name and UID are true, the rest may be missing.
	Victims []*corev1.Pod
	// Violations is how many victims' disruption budgets do not allow it.
	Violations int
	// Displaced are waiting pods of lower priority that were nominated to the node before; their
	// status.nominatedNodeName is to be cleared.
	Displaced []*corev1.Pod
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
func Schedule(v *placement.View, pods []*corev1.Pod, now time.Time) []Decision {
	queue := waiting(v, pods)
	b := newBatch(v, queue, now)
	decisions := make([]Decision, 0, len(queue))
	for _, pod := range queue {
		decisions = append(decisions, b.decide(pod))
	}
	return decisions
}

// Explanation says where a pod would go now and why, and why not elsewhere.
type Explanation struct {
	// Waits says why nobody decides about the pod (scheduling gates, another scheduler, it has a
	// node already, it is finished or going); empty if somebody does. The rest answers all the same.
	Waits string `json:"waits,omitempty"`
	// Node is where the pod would go, empty if nowhere.
	Node string `json:"node,omitempty"`
	// Message is the text of a FailedScheduling event if Node is empty.
	Message string `json:"message,omitempty"`
	// Preempt is whom the pod would displace, if Node is empty and that helps.
	Preempt *Preemption `json:"preempt,omitempty"`
	// Nodes are the answers of all nodes, best first, those that do not fit last.
	Nodes []NodeExplanation `json:"nodes"`
}

// NodeExplanation is one node's answer to one pod.
type NodeExplanation struct {
	Node    string           `json:"node"`
	Reasons []string         `json:"reasons,omitempty"` // why it does not fit; empty if it does
	Scores  map[string]int64 `json:"scores,omitempty"`  // by upstream's plugin name: 0…100 times the plugin's weight
	Total   int64            `json:"total"`
	// Victims (namespace/name) would have to leave the node for the pod to fit, and Violations of
	// their disruption budgets would not allow it; only where no node fits and preemption helps.
	Victims    []string `json:"victims,omitempty"`
	Violations int      `json:"violations,omitempty"`
}

// Explain tells how every node suits the pod now. It answers for any pod, also for one that is
// placed already, as if it were to be placed again beside itself.
func Explain(v *placement.View, pod *corev1.Pod, now time.Time) Explanation {
	e := Explanation{Waits: whyLeft(pod)}
	pod = pod.DeepCopy()
	pod.Spec.NodeName = ""
	subject := placement.NewPod(pod)
	b := newBatch(v, []*placement.Pod{subject}, now)
	c := b.classOf(subject)
	e.Nodes = c.explain(subject)
	decision := b.decide(subject)
	e.Node, e.Preempt = decision.Node, decision.Preempt
	if decision.Unschedulable != nil {
		e.Message = decision.Unschedulable.Message
	}
	return e
}

// whyLeft says why a pod is not decided here, "" if it is.
func whyLeft(pod *corev1.Pod) string {
	switch {
	case pod.Spec.NodeName != "":
		return "it is on node " + pod.Spec.NodeName + " already"
	case placement.Finished(pod):
		return "it is finished"
	case pod.DeletionTimestamp != nil:
		return "it is being deleted"
	case len(pod.Spec.SchedulingGates) > 0:
		names := make([]string, len(pod.Spec.SchedulingGates))
		for i, gate := range pod.Spec.SchedulingGates {
			names[i] = gate.Name
		}
		return "scheduling gates hold it back: " + strings.Join(names, ", ")
	case cmp.Or(pod.Spec.SchedulerName, DefaultName) != DefaultName:
		return "it wants another scheduler: " + pod.Spec.SchedulerName
	default:
		return ""
	}
}

// waiting selects and orders the pods to decide.
func waiting(v *placement.View, pods []*corev1.Pod) []*placement.Pod {
	var queue []*placement.Pod
	for _, pod := range pods {
		if whyLeft(pod) != "" {
			continue
		}
		if known, ok := v.Pod(pod.Namespace, pod.Name); ok && known.Object == pod {
			queue = append(queue, known)
		} else {
			queue = append(queue, placement.NewPod(pod))
		}
	}
	slices.SortStableFunc(queue, func(a, b *placement.Pod) int { return QueueOrder(a.Object, b.Object) })
	return queue
}

// QueueOrder is the order in which pods are decided: the highest priority first, then the oldest.
func QueueOrder(a, b *corev1.Pod) int {
	return cmp.Or(
		cmp.Compare(corev1helpers.PodPriority(b), corev1helpers.PodPriority(a)),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.UID, b.UID),
	)
}
