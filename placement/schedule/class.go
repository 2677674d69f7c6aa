package schedule

import (
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// class is the answer to all equal pods of a batch. What no placement can change is worked out
// once; counters follow the batch's log.
type class struct {
	batch    *batch
	pod      *placement.Pod // one of them
	priority int32

	// refusal is set when no node needs to be asked (a claim does not exist, say).
	refusal string
	// only are the slots that the pod's node affinity names, nil if it names none.
	only []int32
	// early is per slot what a node's own properties say before resources are looked at, late what
	// they say after. Empty for a class with only.
	early, late []verdict
	open        []int32 // slots with good verdicts
	fits        []bool  // per slot: resources, pod slots and host ports, beside nominated pods
	flat        []int32 // per slot: sum of weighted scores that are not normalised, valid where fits

	preferences nodePreferences
	hard        []spreadCount // constraints that must hold
	soft        softSpread
	affinity    affinityCounts
	volumes     *podVolumes // nil without claims
	disks       bool        // the pod uses disks that only one pod may use on a node

	applied  int // steps of the batch that are accounted for
	asked    int
	groups   *groups // nil until the class is asked again
	refusals refusals
	feasible []int32 // scratch, so that a decision allocates nothing
	raw      []rawScores
}

func newClass(b *batch, pod *placement.Pod) *class {
	c := &class{batch: b, pod: pod, priority: corev1helpers.PodPriority(pod.Object), applied: len(b.log)}
	c.refusal = c.check()
	if c.refusal != "" || len(b.nodes) == 0 {
		return c
	}
	c.affinity = c.countAffinity()
	c.hard = c.hardSpread()
	if c.only != nil {
		return c
	}
	n := len(b.nodes)
	c.early, c.late, c.fits, c.flat = make([]verdict, n), make([]verdict, n), make([]bool, n), make([]int32, n)
	c.judgeNodes()
	c.prepareScores()
	for _, slot := range c.open {
		c.fit(int(slot))
	}
	return c
}

// check looks for what refuses the pod everywhere, in upstream's order of plugins.
func (c *class) check() string {
	if conflict := c.nameNodes(); conflict != "" {
		return conflict
	}
	if refusal := c.checkClaims(); refusal != "" {
		return refusal
	}
	if c.pod.Affinity.Invalid() {
		return "pod has an invalid (anti-)affinity selector"
	}
	for i := range c.pod.Object.Spec.TopologySpreadConstraints {
		if !validSelector(c.pod.Object.Spec.TopologySpreadConstraints[i].LabelSelector) {
			return "pod has an invalid selector in a topology spread constraint"
		}
	}
	c.disks = usesDisks(c.pod.Object)
	return ""
}

// constrained tells whether pods elsewhere than on a slot bear on it.
func (c *class) constrained() bool { return len(c.hard) > 0 || c.affinity.constrains() }

// perNode tells whether the pods on a slot bear on it by more than the room they take.
func (c *class) perNode() bool { return c.disks || c.volumes != nil }

// catchUp accounts for what has happened in the batch since the class was last asked.
func (c *class) catchUp() {
	steps := c.batch.log[c.applied:]
	c.applied = len(c.batch.log)
	if c.refusal != "" || len(steps) == 0 {
		return
	}
	for _, s := range steps {
		if c.only == nil && c.early[s.slot] == fitsSoFar && c.late[s.slot] == fitsSoFar {
			c.fit(s.slot)
		}
		if s.pod != nil {
			c.count(s.pod, s.slot)
		}
		if c.groups != nil {
			c.groups.follow(c, s)
		}
		c.forget(s)
	}
}

// count takes a placed pod into the counters.
func (c *class) count(pod *placement.Pod, slot int) {
	for i := range c.hard {
		c.hard[i].add(c.pod, pod.Object, slot, 1)
	}
	for i := range c.soft.counts {
		c.soft.counts[i].add(c.pod, pod.Object, slot, 1)
	}
	c.affinity.add(c, pod, slot, 1)
}

// candidate tells whether a slot is among those that the pod's node affinity names, if it names any.
func (c *class) candidate(slot int) bool {
	if c.only == nil {
		return true
	}
	for _, s := range c.only {
		if int(s) == slot {
			return true
		}
	}
	return false
}

// best is the slot of the best node, -1 if none fits. podHash breaks ties.
func (c *class) best(podHash uint64) int {
	c.asked++
	switch {
	case c.only != nil:
		return c.bestNamed(podHash)
	case c.groups == nil && len(c.open) >= fewNodes && c.asked > 1 && !c.batch.oneByOne && c.groupable():
		c.groups = newGroups(c)
	}
	if c.groups != nil {
		return c.groups.best(c, podHash)
	}
	c.findFeasible()
	return c.pick(podHash)
}

// bestNamed looks at the few nodes that the pod may go to. Scores matter only among several.
func (c *class) bestNamed(podHash uint64) int {
	c.feasible = c.feasible[:0]
	for _, slot := range c.only {
		if objection := c.judge(int(slot), ""); objection.reasons == nil {
			c.feasible = append(c.feasible, slot)
		}
	}
	switch len(c.feasible) {
	case 0:
		return -1
	case 1:
		return int(c.feasible[0])
	}
	c.scoreNamed()
	return c.pick(podHash)
}

// scoreNamed works out for the feasible slots of a class with named nodes what other classes know
// of all slots.
func (c *class) scoreNamed() {
	if c.flat == nil {
		c.flat = make([]int32, len(c.batch.nodes))
		c.open = c.only
		c.prepareScores()
	}
	for _, slot := range c.feasible {
		c.flat[slot] = int32(c.flatScore(int(slot)))
	}
}

// pick is the best of the feasible slots.
func (c *class) pick(podHash uint64) int {
	if len(c.feasible) <= 1 {
		for _, slot := range c.feasible {
			return int(slot)
		}
		return -1
	}
	limits := c.rawScores()
	best, bestScore, bestTie := -1, int64(-1), uint64(0)
	for i, slot := range c.feasible {
		score := c.total(int(slot), &c.raw[i], &limits)
		if score < bestScore {
			continue
		}
		n := &c.batch.nodes[slot]
		tie := placement.TieBreak(podHash, n.Hash())
		if score > bestScore || tie < bestTie || (tie == bestTie && n.Name < c.batch.nodes[best].Name) {
			best, bestScore, bestTie = int(slot), score, tie
		}
	}
	return best
}

// findFeasible collects the slots that pass every filter.
func (c *class) findFeasible() {
	c.feasible = c.feasible[:0]
	for _, slot := range c.open {
		if c.fits[slot] && c.allows(int(slot)) {
			c.feasible = append(c.feasible, slot)
		}
	}
}

// allows tells whether a slot that the pod fits passes the filters that look at other pods.
func (c *class) allows(slot int) bool {
	if c.perNode() {
		return c.judge(slot, "").reasons == nil
	}
	if !c.constrained() {
		return true
	}
	if len(c.batch.nominated[slot]) > 0 {
		return c.judge(slot, "").reasons == nil
	}
	return c.spreads(slot) && c.affinity.allows(slot)
}

// judge runs all filters for a slot in upstream's order: first as if the pods nominated to it of
// the same or higher priority were there, and if that is well, without them. except is left out of
// them: the pod itself.
func (c *class) judge(slot int, except types.UID) objection {
	if rivals := c.batch.rivals(slot, c.priority, except); len(rivals) > 0 {
		t := c.newTrial(slot)
		for _, p := range rivals {
			t.add(p)
		}
		if o := t.judge(); o.reasons != nil {
			return o
		}
	}
	return c.newTrial(slot).judge()
}
