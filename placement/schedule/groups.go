package schedule

import (
	"encoding/binary"
	"math"

	"github.com/tidwall/btree"

	"shoal/placement"
)

// groups put the slots that a class fits together by all that its filters and relative scores read
// of them: their domains in topologies of few values, the counts around them in topologies of many
// (host names above all), their taints and preferences. Slots of a group differ only in their flat
// scores, by which they are ordered. So the best node is found by looking at one slot per group
// instead of at every slot: a further equal pod costs as much as there are groups, and the
// logarithm of the nodes.
type groups struct {
	ring    []int32 // slots by hash, for ties
	coarse  []*placement.Topology
	fine    []*placement.Topology
	list    []group
	empty   []int32 // groups without members
	index   map[string]int32
	of      []int32        // per slot: its group, -1 if the class does not fit it
	order   []uint64       // per slot: its place in its group
	apart   map[int32]bool // slots that are groups of their own
	known   int            // see affinityCounts.topologies
	key     []byte
	fitting []int32 // scratch: groups that pass the filters
}

type group struct {
	key     string
	members btree.Set[uint64] // order: best flat score first, then place on the ring
	size    int
}

// fewNodes are looked at one by one; groups would cost more.
const fewNodes = 16

// A topology is coarse if a domain has this many nodes on average.
const coarseNodes = 8

// topFlat is more than any flat score.
const topFlat = 1 << 20

// groupable tells whether a class can be answered by groups. It cannot if single nodes need a look
// each time (volumes), or if a relative score depends on a count that groups do not have: how many
// domains of a fine topology other than host names the feasible nodes have.
func (c *class) groupable() bool {
	if c.perNode() {
		return false
	}
	for i := range c.soft.counts {
		if s := &c.soft.counts[i]; (s.perSlot == nil) != c.isCoarse(s.topology) {
			return false
		}
	}
	return true
}

func (c *class) isCoarse(t *placement.Topology) bool {
	return len(t.Members)*coarseNodes <= len(c.batch.nodes)
}

func newGroups(c *class) *groups {
	b := c.batch
	g := &groups{
		ring: b.view.Ring(), index: map[string]int32{},
		of: make([]int32, len(b.nodes)), order: make([]uint64, len(b.nodes)), apart: map[int32]bool{},
	}
	for slot := range g.of {
		g.of[slot] = -1
	}
	g.findTopologies(c)
	g.known = c.affinity.topologies()
	for _, slot := range c.open {
		g.put(c, slot)
	}
	return g
}

// findTopologies lists the topologies that the class reads.
func (g *groups) findTopologies(c *class) {
	g.coarse, g.fine = g.coarse[:0], g.fine[:0]
	seen := map[*placement.Topology]bool{}
	take := func(t *placement.Topology) {
		switch {
		case seen[t]:
		case c.isCoarse(t):
			g.coarse = append(g.coarse, t)
		default:
			g.fine = append(g.fine, t)
		}
		seen[t] = true
	}
	for i := range c.hard {
		take(c.hard[i].topology)
	}
	for i := range c.soft.counts {
		take(c.soft.counts[i].topology)
	}
	for _, counts := range [][]domainCount{c.affinity.wanted, c.affinity.unwanted, c.affinity.repelled, c.affinity.preference} {
		for i := range counts {
			take(counts[i].topology)
		}
	}
}

// put takes a slot into the group it belongs to.
func (g *groups) put(c *class, slot int32) {
	if !c.fits[slot] {
		return
	}
	if c.constrained() && len(c.batch.nominated[slot]) > 0 {
		g.apart[slot] = true // the pods nominated there count for this slot alone
	}
	g.writeKey(c, int(slot))
	i, ok := g.index[string(g.key)]
	if !ok {
		i = g.free()
		g.list[i].key = string(g.key)
		g.index[g.list[i].key] = i
	}
	g.of[slot] = i
	g.order[slot] = uint64(topFlat-int64(c.flat[slot]))<<32 | uint64(c.batch.rankOf(slot))
	g.list[i].members.Insert(g.order[slot])
	g.list[i].size++
}

func (g *groups) take(slot int32) {
	delete(g.apart, slot)
	if i := g.of[slot]; i >= 0 {
		g.list[i].members.Delete(g.order[slot])
		g.list[i].size--
		g.of[slot] = -1
		if g.list[i].size == 0 {
			delete(g.index, g.list[i].key)
			g.empty = append(g.empty, i)
		}
	}
}

// free finds a place for a new group.
func (g *groups) free() int32 {
	if last := len(g.empty) - 1; last >= 0 {
		i := g.empty[last]
		g.empty = g.empty[:last]
		return i
	}
	g.list = append(g.list, group{})
	return int32(len(g.list) - 1)
}

// writeKey writes what groups a slot.
func (g *groups) writeKey(c *class, slot int) {
	key := g.key[:0]
	for _, t := range g.coarse {
		key = binary.AppendVarint(key, int64(t.Domain[slot]))
	}
	for _, t := range g.fine {
		key = g.appendCounts(key, c, t, slot)
	}
	if c.preferences.taints != nil {
		key = binary.AppendVarint(key, c.preferences.taints[slot])
	}
	if c.preferences.affinity != nil {
		key = binary.AppendVarint(key, c.preferences.affinity[slot])
	}
	if g.apart[int32(slot)] {
		key = binary.AppendVarint(key, int64(slot))
	}
	g.key = key
}

// appendCounts writes what the class reads of a slot's domain in a topology of many values. Of
// filters that ask only whether there is somebody, the number does not matter.
func (g *groups) appendCounts(key []byte, c *class, t *placement.Topology, slot int) []byte {
	d := t.Domain[slot]
	if d < 0 {
		return append(key, 0)
	}
	key = append(key, 1)
	for i := range c.hard {
		if c.hard[i].topology == t {
			key = binary.AppendVarint(key, c.hard[i].pods[d])
		}
	}
	for i := range c.soft.counts {
		if s := &c.soft.counts[i]; s.topology == t {
			key = binary.AppendVarint(key, s.perSlot[slot])
		}
	}
	a := &c.affinity
	for _, counts := range [][]domainCount{a.wanted, a.unwanted, a.repelled} {
		for i := range counts {
			if counts[i].topology == t {
				key = append(key, flag(counts[i].amount[d] > 0))
			}
		}
	}
	for i := range a.preference {
		if a.preference[i].topology == t {
			key = binary.AppendVarint(key, a.preference[i].amount[d])
		}
	}
	return key
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// follow brings the groups up to a step that the class has counted. A slot whose own counts or
// room changed moves; what changed for whole coarse domains is read when the best is looked for.
func (g *groups) follow(c *class, s step) {
	if g.known != c.affinity.topologies() {
		*g = *newGroups(c) // a pod with a new kind of affinity has come
		return
	}
	g.move(c, int32(s.slot))
	for _, t := range g.fine {
		d := t.Domain[s.slot]
		if d < 0 || len(t.Members[d]) == 1 {
			continue
		}
		for _, slot := range t.Members[d] {
			g.move(c, slot)
		}
	}
}

func (g *groups) move(c *class, slot int32) {
	g.take(slot)
	if c.early[slot] == fitsSoFar && c.late[slot] == fitsSoFar {
		g.put(c, slot)
	}
}

// topologies counts the topologies about which others' affinity with the class has been heard of.
func (a *affinityCounts) topologies() int { return len(a.repelled) + len(a.preference) }

// best is the slot of the best node, -1 if none fits.
func (g *groups) best(c *class, podHash uint64) int {
	limits := c.startLimits()
	g.fitting = g.fitting[:0]
	feasible := 0
	for i := range g.list {
		if g.list[i].size == 0 {
			continue
		}
		speaker := g.speaker(int32(i))
		if !c.allows(speaker) {
			continue
		}
		g.fitting = append(g.fitting, int32(i))
		feasible += g.list[i].size
		c.soft.weigh(speaker, g.list[i].size)
	}
	if feasible == 0 {
		return -1
	}
	c.soft.endWeights()
	c.raw = c.raw[:0]
	for _, i := range g.fitting {
		c.raw = append(c.raw, c.rawScore(g.speaker(i), &limits))
	}
	best, bestScore, bestTie := -1, int64(-1), uint64(0)
	rank := c.batch.rankFrom(podHash)
	for k, i := range g.fitting {
		first, _ := g.list[i].members.Min()
		score := limits.relative(&c.raw[k]) + topFlat - int64(first>>32)
		if score < bestScore {
			continue
		}
		slot := g.onRing(i, first>>32, uint64(rank))
		tie := placement.TieBreak(podHash, c.batch.nodes[slot].Hash())
		if score > bestScore || tie < bestTie || (tie == bestTie && c.batch.nodes[slot].Name < c.batch.nodes[best].Name) {
			best, bestScore, bestTie = slot, score, tie
		}
	}
	return best
}

// speaker is some slot of a group; they are alike.
func (g *groups) speaker(i int32) int {
	first, _ := g.list[i].members.Min()
	return int(g.ring[first&math.MaxUint32])
}

// onRing is, among the slots of a group with the given flat score, the first at or after a place on
// the ring.
func (g *groups) onRing(i int32, score, rank uint64) int {
	found := uint64(math.MaxUint64)
	look := func(from uint64) bool {
		g.list[i].members.Ascend(from, func(order uint64) bool {
			if order>>32 == score {
				found = order
			}
			return false
		})
		return found != math.MaxUint64
	}
	if !look(score<<32 | rank) {
		look(score << 32)
	}
	return int(g.ring[found&math.MaxUint32])
}
