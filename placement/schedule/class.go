package schedule

import (
	"shoal/placement"
)

// class is the answer to all equal pods of a batch.
type class struct {
	batch *batch
	pod   *placement.Pod // one of them

	// refusal is set when no node needs to be asked (a claim does not exist, say).
	refusal string
	static  []verdict // per slot: what no placement of this batch can change
	// open are the slots whose static verdict is good, in slot order.
	open  []int32
	fits  []bool  // per slot: resources, pod slots and host ports
	room  []int32 // per slot: weighted resource scores, valid where fits
	fixed fixedScores

	hard      []spreadCount // constraints that must hold
	soft      softSpread
	affinity  affinityCounts
	provision []claimKey

	applied int // placements of the batch that are accounted for
	failure *Unschedulable
	// scratch, so that a decision allocates nothing
	feasible []int32
	raw      []rawScores
}

func newClass(b *batch, pod *placement.Pod) *class {
	c := &class{batch: b, pod: pod, applied: len(b.placed)}
	n := len(b.nodes)
	c.static, c.fits, c.room = make([]verdict, n), make([]bool, n), make([]int32, n)
	volumes := c.checkVolumes()
	if c.refusal == "" && pod.Affinity.Invalid() {
		c.refusal = "pod has an invalid (anti-)affinity selector"
	}
	if c.refusal != "" {
		return c
	}
	c.judgeNodes(volumes)
	c.fixed = c.fixScores()
	for _, slot := range c.open {
		c.fit(int(slot))
	}
	c.hard = c.hardSpread()
	c.soft = c.softSpread()
	c.affinity = c.countAffinity()
	return c
}

// catchUp accounts for the placements made since the class was last asked.
func (c *class) catchUp() {
	if c.refusal != "" {
		c.applied = len(c.batch.placed)
		return
	}
	for _, p := range c.batch.placed[c.applied:] {
		c.failure = nil
		if c.static[p.slot] == fitsSoFar {
			c.fit(p.slot)
		}
		for i := range c.hard {
			c.hard[i].add(c.pod, p.pod.Object, p.slot, 1)
		}
		for i := range c.soft.counts {
			c.soft.counts[i].add(c.pod, p.pod.Object, p.slot, 1)
		}
		c.affinity.add(c, p.pod, p.slot, 1)
	}
	c.applied = len(c.batch.placed)
}

// best is the slot of the best node, -1 if none fits. podHash breaks ties.
func (c *class) best(podHash uint64) int {
	c.findFeasible()
	if len(c.feasible) == 0 {
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
		tie := placement.TieBreak(podHash, n.hash)
		if score > bestScore || tie < bestTie || (tie == bestTie && n.Name < c.batch.nodes[best].Name) {
			best, bestScore, bestTie = int(slot), score, tie
		}
	}
	return best
}

// findFeasible collects the slots that pass every filter.
func (c *class) findFeasible() {
	c.feasible = c.feasible[:0]
	minima := c.spreadMinima()
	for _, slot := range c.open {
		if c.fits[slot] && c.spreads(int(slot), minima) && c.affinity.allows(int(slot)) {
			c.feasible = append(c.feasible, slot)
		}
	}
}
