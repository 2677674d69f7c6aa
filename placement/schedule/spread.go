package schedule

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// spreadCount is one topology spread constraint with the matching pods per domain.
type spreadCount struct {
	topology   *topology
	selector   labels.Selector
	maxSkew    int64
	minDomains int
	self       int64   // 1 if the pod matches its own selector
	included   []bool  // per slot: the node takes part in the constraint
	exists     []bool  // per domain: a node that takes part has this value
	pods       []int64 // per domain
}

// hardSpread counts for the constraints that must hold.
func (c *class) hardSpread() []spreadCount {
	return c.countSpread(c.pod.Object.Spec.TopologySpreadConstraints, corev1.DoNotSchedule, nil, true)
}

// countSpread builds the counters of the constraints of one kind. A given selector replaces the
// constraints' own; needAll leaves out nodes that lack the label of any of them.
func (c *class) countSpread(constraints []corev1.TopologySpreadConstraint, kind corev1.UnsatisfiableConstraintAction, selector labels.Selector, needAll bool) []spreadCount {
	var counts []spreadCount
	var policies []corev1.TopologySpreadConstraint
	for i := range constraints {
		if constraints[i].WhenUnsatisfiable != kind {
			continue
		}
		s := selector
		if s == nil {
			s = spreadSelector(&constraints[i], c.pod.Object.Labels)
		}
		sc := spreadCount{
			topology: c.batch.topology(constraints[i].TopologyKey), selector: s,
			maxSkew:    int64(constraints[i].MaxSkew),
			minDomains: int(ptr.Deref(constraints[i].MinDomains, 1)),
		}
		if s.Matches(labels.Set(c.pod.Object.Labels)) {
			sc.self = 1
		}
		sc.exists, sc.pods = make([]bool, sc.topology.size), make([]int64, sc.topology.size)
		counts = append(counts, sc)
		policies = append(policies, constraints[i])
	}
	if len(counts) == 0 {
		return nil
	}
	c.includeNodes(counts, policies, needAll)
	c.batch.view.EachPodIn(c.pod.Object.Namespace, func(p *placement.Pod) {
		if !takesRoom(p.Object) {
			return
		}
		if slot := c.batch.slotOf(p); slot >= 0 {
			for i := range counts {
				counts[i].add(c.pod, p.Object, slot, 1)
			}
		}
	})
	for _, p := range c.batch.placed {
		for i := range counts {
			counts[i].add(c.pod, p.pod.Object, p.slot, 1)
		}
	}
	return counts
}

// includeNodes marks the nodes that take part: those with the labels, that the pod's node
// affinity matches (unless the constraint ignores it) and whose taints it tolerates (only if the
// constraint honours them).
func (c *class) includeNodes(counts []spreadCount, policies []corev1.TopologySpreadConstraint, needAll bool) {
	required := nodeaffinity.GetRequiredNodeAffinity(c.pod.Object)
	for i := range counts {
		counts[i].included = make([]bool, len(c.batch.nodes))
	}
	for slot := range c.batch.nodes {
		n := c.batch.nodes[slot].Object
		if needAll && lacksDomain(counts, slot) {
			continue
		}
		for i := range counts {
			domain := counts[i].topology.domain[slot]
			if domain < 0 ||
				ptr.Deref(policies[i].NodeAffinityPolicy, corev1.NodeInclusionPolicyHonor) == corev1.NodeInclusionPolicyHonor && !matches(required, n) ||
				ptr.Deref(policies[i].NodeTaintsPolicy, corev1.NodeInclusionPolicyIgnore) == corev1.NodeInclusionPolicyHonor && !tolerates(c.pod.Object, n) {
				continue
			}
			counts[i].included[slot] = true
			counts[i].exists[domain] = true
		}
	}
}

func lacksDomain(counts []spreadCount, slot int) bool {
	for i := range counts {
		if counts[i].topology.domain[slot] < 0 {
			return true
		}
	}
	return false
}

// spreadSelector is a constraint's selector with the pod's own values of matchLabelKeys.
func spreadSelector(constraint *corev1.TopologySpreadConstraint, podLabels map[string]string) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(constraint.LabelSelector)
	if err != nil {
		return labels.Nothing()
	}
	own := labels.Set{}
	for _, key := range constraint.MatchLabelKeys {
		if value, ok := podLabels[key]; ok {
			own[key] = value
		}
	}
	requirements, _ := own.AsSelector().Requirements()
	return selector.Add(requirements...)
}

// add counts a pod on a node, or takes it off with by = -1. Terminating pods do not count.
func (s *spreadCount) add(incoming *placement.Pod, pod *corev1.Pod, slot int, by int64) {
	if !s.included[slot] || pod.DeletionTimestamp != nil || pod.Namespace != incoming.Object.Namespace ||
		s.selector.Empty() || !s.selector.Matches(labels.Set(pod.Labels)) {
		return
	}
	s.pods[s.topology.domain[slot]] += by
}

// minimum is the smallest count of any domain: 0 if there are fewer domains than minDomains.
func (s *spreadCount) minimum() int64 {
	domains, least := 0, int64(math.MaxInt32)
	for d, exists := range s.exists {
		if exists {
			domains++
			least = min(least, s.pods[d])
		}
	}
	if domains < s.minDomains {
		return 0
	}
	return least
}

func (c *class) spreadMinima() []int64 {
	if len(c.hard) == 0 {
		return nil
	}
	minima := make([]int64, len(c.hard))
	for i := range c.hard {
		minima[i] = c.hard[i].minimum()
	}
	return minima
}

// spreads tells whether the pod may go to a slot by all hard constraints.
func (c *class) spreads(slot int, minima []int64) bool {
	for i := range c.hard {
		s := &c.hard[i]
		domain := s.topology.domain[slot]
		if domain < 0 || s.pods[domain]+s.self-minima[i] > s.maxSkew {
			return false
		}
	}
	return true
}

// spreadReason says why spreads is false, "" if it is true; a missing label cannot be helped.
func (c *class) spreadReason(slot int, minima []int64) (reason string, hopeless bool) {
	for i := range c.hard {
		s := &c.hard[i]
		domain := s.topology.domain[slot]
		if domain < 0 {
			return reasonSpreadLabel, true
		}
		if s.pods[domain]+s.self-minima[i] > s.maxSkew {
			return reasonSpread, false
		}
	}
	return "", false
}

// softSpread are the constraints that only score.
type softSpread struct {
	counts  []spreadCount
	needAll bool // nodes that lack a label score nothing
	seen    [][]uint32
	round   uint32
	weights []float64
}

// defaultSpread is how pods of a service or a workload object are spread when they name no
// constraints of their own.
var defaultSpread = []corev1.TopologySpreadConstraint{
	{TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 3},
	{TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 5},
}

func (c *class) softSpread() softSpread {
	var s softSpread
	if own := c.pod.Object.Spec.TopologySpreadConstraints; len(own) > 0 {
		s.needAll = true
		s.counts = c.countSpread(own, corev1.ScheduleAnyway, nil, true)
	} else if selector := c.defaultSelector(); !selector.Empty() {
		s.counts = c.countSpread(defaultSpread, corev1.ScheduleAnyway, selector, false)
	}
	s.weights = make([]float64, len(s.counts))
	for i := range s.counts {
		s.seen = append(s.seen, make([]uint32, s.counts[i].topology.size))
	}
	return s
}

// defaultSelector selects the pods that belong together with this one: those of its services
// and of its ReplicaSet, ReplicationController or StatefulSet.
func (c *class) defaultSelector() labels.Selector {
	pod := c.pod.Object
	set := labels.Set{}
	for _, svc := range c.batch.view.Services.In(pod.Namespace) {
		if len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			set = labels.Merge(set, svc.Spec.Selector)
		}
	}
	selector := set.AsSelector()
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return selector
	}
	var owner *metav1.LabelSelector
	switch ref.Kind {
	case placement.KindReplicaSet:
		if rs, ok := c.batch.view.ReplicaSets.Get(pod.Namespace, ref.Name); ok {
			owner = rs.Spec.Selector
		} else if hash, ok := pod.Labels["pod-template-hash"]; ok {
			// A set that is created by the same plan as the pod: its hash label tells its pods.
			owner = &metav1.LabelSelector{MatchLabels: map[string]string{"pod-template-hash": hash}}
		}
	case placement.KindStatefulSet:
		if s, ok := c.batch.view.StatefulSets.Get(pod.Namespace, ref.Name); ok {
			owner = s.Spec.Selector
		}
	case placement.KindReplicationController:
		if rc, ok := c.batch.view.Replication.Get(pod.Namespace, ref.Name); ok {
			owner = &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
		}
	}
	if owner == nil {
		return selector
	}
	own, err := metav1.LabelSelectorAsSelector(owner)
	if err != nil {
		return selector
	}
	requirements, _ := own.Requirements()
	return selector.Add(requirements...)
}

// weigh finds, over the feasible nodes, how many domains each constraint has: a constraint's
// weight grows with their logarithm, so that few big domains are not drowned by many small ones.
func (s *softSpread) weigh(feasible []int32) {
	s.round++
	for i := range s.counts {
		domains, unlabelled := 0, 0
		for _, slot := range feasible {
			if s.ignores(int(slot)) {
				continue
			}
			d := s.counts[i].topology.domain[slot]
			if d < 0 {
				unlabelled = 1 // together they count as one domain
			} else if s.seen[i][d] != s.round {
				s.seen[i][d] = s.round
				domains++
			}
		}
		s.weights[i] = math.Log(float64(domains + unlabelled + 2))
	}
}

func (s *softSpread) ignores(slot int) bool { return s.needAll && lacksDomain(s.counts, slot) }

// crowd is how many related pods are around a node, weighted; fewer is better.
func (s *softSpread) crowd(slot int) int64 {
	var crowd float64
	for i := range s.counts {
		if d := s.counts[i].topology.domain[slot]; d >= 0 {
			crowd += float64(s.counts[i].pods[d])*s.weights[i] + float64(s.counts[i].maxSkew-1)
		}
	}
	return int64(math.Round(crowd))
}
