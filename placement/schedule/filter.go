package schedule

import (
	"maps"
	"slices"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"shoal/placement"
)

// verdict is what a node's own properties say to a pod, whatever else runs there.
type verdict uint8

const (
	fitsSoFar verdict = iota
	isCordoned
	isTainted
	affinityMismatch
	volumeMismatch
)

// The reasons, in upstream's words: users search for them.
const (
	reasonCordoned       = "node(s) were unschedulable"
	reasonTainted        = "node(s) had untolerated taint(s)"
	reasonAffinity       = "node(s) didn't match Pod's node affinity/selector"
	reasonVolume         = "node(s) didn't match PersistentVolume's node affinity"
	reasonPorts          = "node(s) didn't have free ports for the requested pod ports"
	reasonPods           = "Too many pods"
	reasonSpread         = "node(s) didn't match pod topology spread constraints"
	reasonSpreadLabel    = "node(s) didn't match pod topology spread constraints (missing required label)"
	reasonExistingAnti   = "node(s) didn't satisfy existing pods anti-affinity rules"
	reasonPodAffinity    = "node(s) didn't match pod affinity rules"
	reasonPodAnti        = "node(s) didn't match pod anti-affinity rules"
	reasonNotHelpful     = "Preemption is not helpful for scheduling"
	reasonNoVictims      = "No preemption victims found for incoming pod"
	messageNever         = "not eligible due to preemptionPolicy=Never."
	insufficient         = "Insufficient "
	messageNoNodes       = "no nodes available to schedule pods"
	messageUnboundClaims = "pod has unbound immediate PersistentVolumeClaims"
)

var verdictReasons = map[verdict]string{
	isCordoned: reasonCordoned, isTainted: reasonTainted,
	affinityMismatch: reasonAffinity, volumeMismatch: reasonVolume,
}

// comparisonOperators are Lt and Gt in tolerations, an alpha feature in v1.37 that is off.
const comparisonOperators = false

func repels(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}

func tolerates(pod *corev1.Pod, n *corev1.Node) bool {
	if len(n.Spec.Taints) == 0 {
		return true
	}
	_, untolerated := corev1helpers.FindMatchingUntoleratedTaint(logr.Discard(), n.Spec.Taints, pod.Spec.Tolerations, repels, comparisonOperators)
	return !untolerated
}

var cordonTaint = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func toleratesCordon(pod *corev1.Pod) bool {
	return corev1helpers.TolerationsTolerateTaint(logr.Discard(), pod.Spec.Tolerations, &cordonTaint, comparisonOperators)
}

// judgeNodes fills static and open. volumes are the affinities of the pod's bound volumes.
func (c *class) judgeNodes(volumes []*nodeaffinity.NodeSelector) {
	pod := c.pod.Object
	required := nodeaffinity.GetRequiredNodeAffinity(pod)
	selects := len(pod.Spec.NodeSelector) > 0 || pod.Spec.Affinity != nil && pod.Spec.Affinity.NodeAffinity != nil
	uncordoned := toleratesCordon(pod)
	only := namedNodes(pod)
	for slot := range c.batch.nodes {
		n := c.batch.nodes[slot].Object
		switch {
		case n.Spec.Unschedulable && !uncordoned:
			c.static[slot] = isCordoned
		case !tolerates(pod, n):
			c.static[slot] = isTainted
		case only != nil && !only[n.Name]:
			c.static[slot] = affinityMismatch
		case selects && !matches(required, n):
			c.static[slot] = affinityMismatch
		case slices.ContainsFunc(volumes, func(v *nodeaffinity.NodeSelector) bool { return !v.Match(n) }):
			c.static[slot] = volumeMismatch
		default:
			c.open = append(c.open, int32(slot))
		}
	}
}

// matches tells whether a node is selected; a term that does not parse selects nothing.
func matches(required nodeaffinity.RequiredNodeAffinity, n *corev1.Node) bool {
	ok, _ := required.Match(n)
	return ok
}

// namedNodes are the only nodes that a pod's required affinity can match because each of its
// terms names one, as DaemonSet pods do; nil if there is no such limit. It saves matching the
// terms against every node of the cluster.
func namedNodes(pod *corev1.Pod) map[string]bool {
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	names := map[string]bool{}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		i := slices.IndexFunc(term.MatchFields, func(r corev1.NodeSelectorRequirement) bool {
			return r.Key == "metadata.name" && r.Operator == corev1.NodeSelectorOpIn
		})
		if i < 0 {
			return nil
		}
		for _, name := range term.MatchFields[i].Values {
			names[name] = true
		}
	}
	return names
}

// fit works out whether the pod fits a slot's remaining room, and the scores that hang on it.
func (c *class) fit(slot int) {
	n := &c.batch.nodes[slot]
	c.fits[slot] = n.hasRoom(&c.pod.Requests) && !n.portTaken(c.pod.Ports)
	if c.fits[slot] {
		c.room[slot] = int32(leastAllocated(n, c.pod)*weightFit + balanced(n, c.pod)*weightBalanced)
	}
}

func (n *node) hasRoom(r *placement.Resources) bool {
	free := func(want, allocatable, requested int64) bool { return want == 0 || want <= allocatable-requested }
	if n.requested.Pods+1 > n.Allocatable.Pods ||
		!free(r.MilliCPU, n.Allocatable.MilliCPU, n.requested.MilliCPU) ||
		!free(r.Memory, n.Allocatable.Memory, n.requested.Memory) ||
		!free(r.EphemeralStorage, n.Allocatable.EphemeralStorage, n.requested.EphemeralStorage) {
		return false
	}
	for name, want := range r.Scalar {
		if !free(want, n.Allocatable.Scalar[name], n.requested.Scalar[name]) {
			return false
		}
	}
	return true
}

// shortage lists what a node lacks, and whether the empty node would lack it too.
func (n *node) shortage(r *placement.Resources) (reasons []string, hopeless bool) {
	if n.requested.Pods+1 > n.Allocatable.Pods {
		reasons = append(reasons, reasonPods)
	}
	check := func(name string, want, allocatable, requested int64) {
		if want > 0 && want > allocatable-requested {
			reasons = append(reasons, insufficient+name)
			hopeless = hopeless || want > allocatable
		}
	}
	check("cpu", r.MilliCPU, n.Allocatable.MilliCPU, n.requested.MilliCPU)
	check("memory", r.Memory, n.Allocatable.Memory, n.requested.Memory)
	check("ephemeral-storage", r.EphemeralStorage, n.Allocatable.EphemeralStorage, n.requested.EphemeralStorage)
	for _, name := range slices.Sorted(maps.Keys(r.Scalar)) {
		check(string(name), r.Scalar[name], n.Allocatable.Scalar[name], n.requested.Scalar[name])
	}
	return reasons, hopeless
}

func (n *node) portTaken(ports []placement.HostPort) bool {
	for _, p := range ports {
		if n.PortTaken(p) || slices.ContainsFunc(n.ports, p.Conflicts) {
			return true
		}
	}
	return false
}
