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
	topology   *placement.Topology
	selector   labels.Selector
	maxSkew    int64
	minDomains int
	self       int64   // 1 if the pod matches its own selector
	included   []bool  // per slot: the node takes part in the constraint
	exists     []bool  // per domain: a node that takes part has this value
	domains    int     // number of those
	pods       []int64 // per domain
	// perSlot counts pods per slot for a score over host names, where every node is its own
	// domain and takes part whatever the policies say; nil otherwise.
	perSlot []int64

	// least are the smallest count of any domain and that of all others; valid while fresh.
	least, second int64
	leastDomain   int32
	fresh         bool
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
		sc.exists, sc.pods = make([]bool, len(sc.topology.Members)), make([]int64, len(sc.topology.Members))
		if kind == corev1.ScheduleAnyway && constraints[i].TopologyKey == corev1.LabelHostname {
			sc.perSlot = make([]int64, len(c.batch.nodes))
		}
		counts = append(counts, sc)
		policies = append(policies, constraints[i])
	}
	if len(counts) == 0 {
		return nil
	}
	c.includeNodes(counts, policies, needAll)
	c.batch.view.EachLabelSet(c.pod.Object.Namespace, func(set *placement.LabelSet) {
		for i := range counts {
			s := &counts[i]
			if s.selector.Empty() || !s.selector.Matches(set.Labels) {
				continue
			}
			set.Each(func(n *placement.Node, staying, _ int) {
				if n.Slot() >= 0 {
					s.addAt(n.Slot(), int64(staying))
				}
			})
		}
	})
	for _, step := range c.batch.log {
		if step.pod != nil {
			for i := range counts {
				counts[i].add(c.pod, step.pod.Object, step.slot, 1)
			}
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
			domain := counts[i].topology.Domain[slot]
			if domain < 0 ||
				ptr.Deref(policies[i].NodeAffinityPolicy, corev1.NodeInclusionPolicyHonor) == corev1.NodeInclusionPolicyHonor && !matches(required, n) ||
				ptr.Deref(policies[i].NodeTaintsPolicy, corev1.NodeInclusionPolicyIgnore) == corev1.NodeInclusionPolicyHonor && !tolerates(c.pod.Object, n) {
				continue
			}
			counts[i].included[slot] = true
			if !counts[i].exists[domain] {
				counts[i].exists[domain] = true
				counts[i].domains++
			}
		}
	}
}

func lacksDomain(counts []spreadCount, slot int) bool {
	for i := range counts {
		if counts[i].topology.Domain[slot] < 0 {
			return true
		}
	}
	return false
}

// spreadSelector is a constraint's selector with the pod's own values of matchLabelKeys.
func spreadSelector(constraint *corev1.TopologySpreadConstraint, podLabels map[string]string) labels.Selector {
	selector := selectorOf(constraint.LabelSelector)
	own := labels.Set{}
	for _, key := range constraint.MatchLabelKeys {
		if value, ok := podLabels[key]; ok {
			own[key] = value
		}
	}
	requirements, _ := own.AsSelector().Requirements()
	return selector.Add(requirements...)
}

// counts tells whether a pod on a slot counts. Terminating pods do not.
func (s *spreadCount) counts(incoming *placement.Pod, pod *corev1.Pod, slot int) bool {
	return (s.included[slot] || s.perSlot != nil) && pod.DeletionTimestamp == nil && pod.Namespace == incoming.Object.Namespace &&
		!s.selector.Empty() && s.selector.Matches(labels.Set(pod.Labels))
}

// add counts a pod on a node, or takes it off with by = -1.
func (s *spreadCount) add(incoming *placement.Pod, pod *corev1.Pod, slot int, by int64) {
	if s.counts(incoming, pod, slot) {
		s.addAt(slot, by)
	}
}

func (s *spreadCount) addAt(slot int, by int64) {
	if s.perSlot != nil {
		s.perSlot[slot] += by
		return
	}
	if s.included[slot] {
		s.pods[s.topology.Domain[slot]] += by
		s.fresh = false
	}
}

// minimum is the smallest count of any domain, with one domain's count changed by shift; 0 if
// there are fewer domains than minDomains.
func (s *spreadCount) minimum(domain int32, shift int64) int64 {
	if s.domains < s.minDomains {
		return 0
	}
	if !s.fresh {
		s.least, s.second, s.leastDomain, s.fresh = math.MaxInt32, math.MaxInt32, -1, true
		for d, exists := range s.exists {
			switch {
			case !exists:
			case s.pods[d] < s.least:
				s.second, s.least, s.leastDomain = s.least, s.pods[d], int32(d)
			default:
				s.second = min(s.second, s.pods[d])
			}
		}
	}
	if shift == 0 || !s.exists[domain] {
		return s.least
	}
	others := s.least
	if domain == s.leastDomain {
		others = s.second
	}
	return min(others, s.pods[domain]+shift)
}

// spreads tells whether the pod may go to a slot by all hard constraints.
func (c *class) spreads(slot int) bool {
	reason, _ := c.spreadReason(slot, nil)
	return reason == ""
}

// spreadReason says which hard constraint keeps the pod from a slot, "" if none does; a missing
// label cannot be helped. shift changes the count of the slot's domain per constraint.
func (c *class) spreadReason(slot int, shift []int64) (reason string, hopeless bool) {
	for i := range c.hard {
		s := &c.hard[i]
		domain := s.topology.Domain[slot]
		if domain < 0 {
			return reasonSpreadLabel, true
		}
		by := at(shift, i)
		if s.pods[domain]+by+s.self-s.minimum(domain, by) > s.maxSkew {
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
	domains []int // per constraint: domains among the feasible nodes, those without label as one
	bare    []bool
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
	} else if selector := c.batch.defaultSelector(c.pod.Object); !selector.Empty() {
		s.counts = c.countSpread(defaultSpread, corev1.ScheduleAnyway, selector, false)
	}
	n := len(s.counts)
	s.weights, s.domains, s.bare = make([]float64, n), make([]int, n), make([]bool, n)
	for i := range s.counts {
		s.seen = append(s.seen, make([]uint32, len(s.counts[i].topology.Members)))
	}
	return s
}

// defaultSelector selects the pods that belong together with this one: those of its services
// and of its ReplicaSet, ReplicationController or StatefulSet.
func (b *batch) defaultSelector(pod *corev1.Pod) labels.Selector {
	set := labels.Set{}
	for _, svc := range b.view.Services.In(pod.Namespace) {
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
		if rs, ok := b.view.ReplicaSets.Get(pod.Namespace, ref.Name); ok {
			owner = rs.Spec.Selector
		} else if hash, ok := pod.Labels["pod-template-hash"]; ok {
			// A set that is created by the same plan as the pod: its hash label tells its pods.
			owner = &metav1.LabelSelector{MatchLabels: map[string]string{"pod-template-hash": hash}}
		}
	case placement.KindStatefulSet:
		if s, ok := b.view.StatefulSets.Get(pod.Namespace, ref.Name); ok {
			owner = s.Spec.Selector
		}
	case placement.KindReplicationController:
		if rc, ok := b.view.Replication.Get(pod.Namespace, ref.Name); ok {
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

// A constraint's weight grows with the logarithm of how many domains the feasible nodes have, so
// that few big domains are not drowned by many small ones. startWeights, weigh for every feasible
// node (or several alike) and endWeights find it.
func (s *softSpread) startWeights() {
	s.round++
	clear(s.domains)
	clear(s.bare)
}

func (s *softSpread) weigh(slot int, nodes int) {
	if s.ignores(slot) {
		return
	}
	for i := range s.counts {
		if s.counts[i].perSlot != nil {
			s.domains[i] += nodes
			continue
		}
		d := s.counts[i].topology.Domain[slot]
		if d < 0 {
			if !s.bare[i] {
				s.bare[i] = true
				s.domains[i]++
			}
		} else if s.seen[i][d] != s.round {
			s.seen[i][d] = s.round
			s.domains[i]++
		}
	}
}

func (s *softSpread) endWeights() {
	for i, domains := range s.domains {
		s.weights[i] = math.Log(float64(domains + 2))
	}
}

func (s *softSpread) ignores(slot int) bool { return s.needAll && lacksDomain(s.counts, slot) }

// crowd is how many related pods are around a node, weighted; fewer is better.
func (s *softSpread) crowd(slot int) int64 {
	var crowd float64
	for i := range s.counts {
		d := s.counts[i].topology.Domain[slot]
		if d < 0 {
			continue
		}
		pods := s.counts[i].pods[d]
		if s.counts[i].perSlot != nil {
			pods = s.counts[i].perSlot[slot]
		}
		// The conversion keeps processors that can from fusing product and sum: every peer is to get the same score.
		crowd += float64(float64(pods)*s.weights[i]) + float64(s.counts[i].maxSkew-1)
	}
	return int64(math.Round(crowd))
}
