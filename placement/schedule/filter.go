package schedule

import (
	"maps"
	"slices"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/nodedeclaredfeatures"
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
	featureMissing
)

// The reasons, in upstream's words: users search for them.
const (
	reasonCordoned     = "node(s) were unschedulable"
	reasonTainted      = "node(s) had untolerated taint(s)"
	reasonAffinity     = "node(s) didn't match Pod's node affinity/selector"
	reasonNamed        = "node(s) didn't satisfy plugin(s) [NodeAffinity]"
	reasonFeatures     = "node(s) didn't match Pod's required features"
	reasonVolume       = "node(s) didn't match PersistentVolume's node affinity"
	reasonNoVolume     = "node(s) didn't find available persistent volumes to bind"
	reasonNoSpace      = "node(s) did not have enough free storage"
	reasonVolumeGone   = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	reasonVolumeZone   = "node(s) had no available volume zone"
	reasonVolumeCount  = "node(s) exceed max volume count"
	reasonDisk         = "node(s) had no available disk"
	reasonClaimInUse   = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
	reasonPorts        = "node(s) didn't have free ports for the requested pod ports"
	reasonPods         = "Too many pods"
	reasonSpread       = "node(s) didn't match pod topology spread constraints"
	reasonSpreadLabel  = "node(s) didn't match pod topology spread constraints (missing required label)"
	reasonExistingAnti = "node(s) didn't satisfy existing pods anti-affinity rules"
	reasonPodAffinity  = "node(s) didn't match pod affinity rules"
	reasonPodAnti      = "node(s) didn't match pod anti-affinity rules"
	reasonNotHelpful   = "Preemption is not helpful for scheduling"
	reasonNoVictims    = "No preemption victims found for incoming pod"
	messageNever       = "not eligible due to preemptionPolicy=Never."
	messageTerminating = "not eligible due to a terminating pod on the nominated node."
	messageConflict    = "pod affinity terms conflict"
	messageNoNodes     = "no nodes available to schedule pods"
	insufficient       = "Insufficient "
)

var verdictReasons = map[verdict]string{
	isCordoned: reasonCordoned, isTainted: reasonTainted, affinityMismatch: reasonAffinity, featureMissing: reasonFeatures,
}

// comparisonOperators are Lt and Gt in tolerations, an alpha feature in v1.37 that is off.
const comparisonOperators = false

// kubernetes is the version whose node features are asked for.
var kubernetes = version.MustParse("1.37.0")

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

// nodeRules are the pod's rules about nodes, parsed.
type nodeRules struct {
	uncordoned bool
	selects    bool
	required   nodeaffinity.RequiredNodeAffinity
	features   nodedeclaredfeatures.FeatureSet
	demanding  bool
}

func rulesOf(pod *corev1.Pod) nodeRules {
	r := nodeRules{
		uncordoned: toleratesCordon(pod),
		selects:    len(pod.Spec.NodeSelector) > 0 || pod.Spec.Affinity != nil && pod.Spec.Affinity.NodeAffinity != nil,
		required:   nodeaffinity.GetRequiredNodeAffinity(pod),
	}
	r.features, r.demanding = featuresOf(pod)
	return r
}

// featuresOf are the features that a node must declare to run the pod, if it needs any.
func featuresOf(pod *corev1.Pod) (nodedeclaredfeatures.FeatureSet, bool) {
	features, err := nodedeclaredfeatures.DefaultFramework.InferForPodScheduling(&nodedeclaredfeatures.PodInfo{Spec: &pod.Spec}, kubernetes)
	return features, err == nil && !features.IsEmpty()
}

func (r *nodeRules) early(pod *corev1.Pod, n *corev1.Node) verdict {
	switch {
	case n.Spec.Unschedulable && !r.uncordoned:
		return isCordoned
	case !tolerates(pod, n):
		return isTainted
	case r.selects && !matches(r.required, n):
		return affinityMismatch
	default:
		return fitsSoFar
	}
}

func (r *nodeRules) late(n *corev1.Node) verdict {
	if r.demanding {
		has := nodedeclaredfeatures.DefaultFramework.TryMap(n.Status.DeclaredFeatures)
		if ok, err := r.features.IsSubset(has); err != nil || !ok {
			return featureMissing
		}
	}
	return fitsSoFar
}

// judgeNodes fills early, late and open.
func (c *class) judgeNodes() {
	rules := rulesOf(c.pod.Object)
	for slot := range c.batch.nodes {
		n := c.batch.nodes[slot].Object
		c.early[slot], c.late[slot] = rules.early(c.pod.Object, n), rules.late(n)
		if c.early[slot] == fitsSoFar && c.late[slot] == fitsSoFar {
			c.open = append(c.open, int32(slot))
		}
	}
}

func (c *class) earlyVerdict(slot int) verdict {
	if c.only == nil {
		return c.early[slot]
	}
	rules := rulesOf(c.pod.Object)
	return rules.early(c.pod.Object, c.batch.nodes[slot].Object)
}

func (c *class) lateVerdict(slot int) verdict {
	if c.only == nil {
		return c.late[slot]
	}
	rules := rulesOf(c.pod.Object)
	return rules.late(c.batch.nodes[slot].Object)
}

// matches tells whether a node is selected; a term that does not parse selects nothing.
func matches(required nodeaffinity.RequiredNodeAffinity, n *corev1.Node) bool {
	ok, _ := required.Match(n)
	return ok
}

// nameNodes fills only if each term of the pod's required node affinity names nodes, as
// DaemonSets' do: then no other node needs to be looked at. It returns why no node can match.
func (c *class) nameNodes() (conflict string) {
	a := c.pod.Object.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	terms := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if len(terms) == 0 {
		return ""
	}
	names := sets.New[string]()
	for _, term := range terms {
		var own sets.Set[string]
		for _, r := range term.MatchFields {
			if r.Key != metav1.ObjectNameField || r.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			if own == nil {
				own = sets.New(r.Values...)
			} else {
				own = own.Intersection(sets.New(r.Values...))
			}
		}
		if own == nil {
			return ""
		}
		names = names.Union(own)
	}
	if len(names) == 0 {
		return messageConflict
	}
	c.only = []int32{}
	for _, name := range sets.List(names) {
		if n, ok := c.batch.view.Node(name); ok && n.Slot() >= 0 {
			c.only = append(c.only, int32(n.Slot()))
		}
	}
	return ""
}

// fit works out whether the pod fits a slot's remaining room, beside those for whom room is kept
// there, and the scores that hang on it.
func (c *class) fit(slot int) {
	n := &c.batch.nodes[slot]
	c.fits[slot] = n.Closed() == "" && fitsIn(&c.pod.Requests, &n.requested, &n.Allocatable) && !n.portTaken(c.pod.Ports)
	if !c.fits[slot] {
		return
	}
	if rivals := c.batch.rivals(slot, c.priority, ""); len(rivals) > 0 {
		t := c.newTrial(slot)
		for _, p := range rivals {
			t.add(p)
		}
		if c.fits[slot] = fitsIn(&c.pod.Requests, &t.requested, &n.Allocatable) && !t.portTaken(n); !c.fits[slot] {
			return
		}
	}
	c.flat[slot] = int32(c.flatScore(slot))
}

func fitsIn(want, requested, allocatable *placement.Resources) bool {
	free := func(want, allocatable, requested int64) bool { return want == 0 || want <= allocatable-requested }
	if requested.Pods+1 > allocatable.Pods ||
		!free(want.MilliCPU, allocatable.MilliCPU, requested.MilliCPU) ||
		!free(want.Memory, allocatable.Memory, requested.Memory) ||
		!free(want.EphemeralStorage, allocatable.EphemeralStorage, requested.EphemeralStorage) {
		return false
	}
	for name, amount := range want.Scalar {
		if !free(amount, allocatable.Scalar[name], requested.Scalar[name]) {
			return false
		}
	}
	return true
}

// shortage lists what is lacking, and whether an empty node would lack it too.
func shortage(want, requested, allocatable *placement.Resources) (reasons []string, hopeless bool) {
	if fitsIn(want, requested, allocatable) {
		return nil, false
	}
	if requested.Pods+1 > allocatable.Pods {
		reasons = append(reasons, reasonPods)
	}
	check := func(name string, want, allocatable, requested int64) {
		if want > 0 && want > allocatable-requested {
			reasons = append(reasons, insufficient+name)
			hopeless = hopeless || want > allocatable
		}
	}
	check("cpu", want.MilliCPU, allocatable.MilliCPU, requested.MilliCPU)
	check("memory", want.Memory, allocatable.Memory, requested.Memory)
	check("ephemeral-storage", want.EphemeralStorage, allocatable.EphemeralStorage, requested.EphemeralStorage)
	for _, name := range slices.Sorted(maps.Keys(want.Scalar)) {
		check(string(name), want.Scalar[name], allocatable.Scalar[name], requested.Scalar[name])
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

// unknownPortTaken is portTaken for ports whose pods are not known.
func (n *node) unknownPortTaken(ports []placement.HostPort) bool {
	return slices.ContainsFunc(ports, n.UnexplainedPortTaken)
}

// selectorOf parses a selector; one that does not parse selects nothing.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

func validSelector(s *metav1.LabelSelector) bool {
	_, err := metav1.LabelSelectorAsSelector(s)
	return err == nil
}
