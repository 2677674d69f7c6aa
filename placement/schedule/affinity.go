package schedule

import (
	"k8s.io/apimachinery/pkg/labels"

	"shoal/placement"
)

// affinityCounts says per topology domain what other pods and the pod itself think of each other.
type affinityCounts struct {
	self       bool // the pod matches all its own required terms
	total      int64
	wanted     []domainCount           // per required affinity term: pods that match all of them
	unwanted   []domainCount           // per required anti-affinity term: pods that match it
	repelled   map[string]*domainCount // by topology key: pods whose anti-affinity is against the pod
	preference map[string]*domainCount // by topology key: sum of weights
	namespace  labels.Set
}

// domainCount is an amount per domain of a topology.
type domainCount struct {
	topology *topology
	amount   []int64
}

func (b *batch) domainCount(key string) domainCount {
	t := b.topology(key)
	return domainCount{topology: t, amount: make([]int64, t.size)}
}

func (d *domainCount) add(slot int, by int64) {
	if domain := d.topology.domain[slot]; domain >= 0 {
		d.amount[domain] += by
	}
}

// at is the amount around a slot, and whether the slot has the label at all.
func (d *domainCount) at(slot int) (int64, bool) {
	domain := d.topology.domain[slot]
	if domain < 0 {
		return 0, false
	}
	return d.amount[domain], true
}

// required pod affinity of other pods draws this one near with that weight; upstream's
// hardPodAffinityWeight.
const hardPodAffinityWeight = 1

func (c *class) countAffinity() affinityCounts {
	a := affinityCounts{
		repelled: map[string]*domainCount{}, preference: map[string]*domainCount{},
		namespace: c.batch.view.NamespaceLabels(c.pod.Object.Namespace),
	}
	if own := c.pod.Affinity; own != nil {
		a.self = c.matchesAll(c.pod)
		for i := range own.Required {
			a.wanted = append(a.wanted, c.batch.domainCount(own.Required[i].TopologyKey))
		}
		for i := range own.RequiredAnti {
			a.unwanted = append(a.unwanted, c.batch.domainCount(own.RequiredAnti[i].TopologyKey))
		}
		c.batch.view.EachPod(func(p *placement.Pod) {
			if takesRoom(p.Object) {
				if slot := c.batch.slotOf(p); slot >= 0 {
					a.addOwn(c, p, slot, 1)
				}
			}
		})
	}
	c.batch.view.EachAffine(func(p *placement.Pod) {
		if slot := c.batch.slotOf(p); slot >= 0 {
			a.addOthers(c, p, slot, 1)
		}
	})
	for _, p := range c.batch.placed {
		a.add(c, p.pod, p.slot, 1)
	}
	return a
}

// add counts a pod on a node, or takes it off with by = -1.
func (a *affinityCounts) add(c *class, pod *placement.Pod, slot int, by int64) {
	if c.pod.Affinity != nil {
		a.addOwn(c, pod, slot, by)
	}
	if pod.Affinity != nil {
		a.addOthers(c, pod, slot, by)
	}
}

// matchesAll tells whether a pod matches every required affinity term of the class.
func (c *class) matchesAll(p *placement.Pod) bool {
	terms := c.pod.Affinity.Required
	if len(terms) == 0 {
		return false
	}
	namespace := c.batch.view.NamespaceLabels(p.Object.Namespace)
	for i := range terms {
		if !terms[i].Matches(p.Object, namespace) {
			return false
		}
	}
	return true
}

// addOwn counts a pod for the terms of the class.
func (a *affinityCounts) addOwn(c *class, p *placement.Pod, slot int, by int64) {
	own := c.pod.Affinity
	if c.matchesAll(p) {
		for i := range a.wanted {
			if a.wanted[i].topology.domain[slot] >= 0 {
				a.wanted[i].add(slot, by)
				a.total += by
			}
		}
	}
	if len(own.RequiredAnti) == 0 && len(own.Preferred) == 0 {
		return
	}
	namespace := c.batch.view.NamespaceLabels(p.Object.Namespace)
	for i := range own.RequiredAnti {
		if own.RequiredAnti[i].Matches(p.Object, namespace) {
			a.unwanted[i].add(slot, by)
		}
	}
	for i := range own.Preferred {
		if own.Preferred[i].Matches(p.Object, namespace) {
			a.prefer(c.batch, &own.Preferred[i], slot, by*own.Preferred[i].Weight)
		}
	}
}

// addOthers counts a pod whose own terms may be about the class.
func (a *affinityCounts) addOthers(c *class, p *placement.Pod, slot int, by int64) {
	for i := range p.Affinity.RequiredAnti {
		term := &p.Affinity.RequiredAnti[i]
		if !term.Matches(c.pod.Object, a.namespace) {
			continue
		}
		d := a.repelled[term.TopologyKey]
		if d == nil {
			fresh := c.batch.domainCount(term.TopologyKey)
			d = &fresh
			a.repelled[term.TopologyKey] = d
		}
		d.add(slot, by)
	}
	for i := range p.Affinity.Preferred {
		if term := &p.Affinity.Preferred[i]; term.Matches(c.pod.Object, a.namespace) {
			a.prefer(c.batch, term, slot, by*term.Weight)
		}
	}
	for i := range p.Affinity.Required {
		if term := &p.Affinity.Required[i]; term.Matches(c.pod.Object, a.namespace) {
			a.prefer(c.batch, term, slot, by*hardPodAffinityWeight)
		}
	}
}

func (a *affinityCounts) prefer(b *batch, term *placement.AffinityTerm, slot int, weight int64) {
	d := a.preference[term.TopologyKey]
	if d == nil {
		fresh := b.domainCount(term.TopologyKey)
		d = &fresh
		a.preference[term.TopologyKey] = d
	}
	d.add(slot, weight)
}

// allows tells whether all required (anti-)affinities hold at a slot.
func (a *affinityCounts) allows(slot int) bool {
	if len(a.wanted) == 0 && len(a.unwanted) == 0 && len(a.repelled) == 0 {
		return true
	}
	return a.reason(slot) == ""
}

// reason says which required (anti-)affinity does not hold at a slot, "" if all do. Only a
// missing affinity partner is beyond the help of preemption.
func (a *affinityCounts) reason(slot int) string {
	if !a.near(slot) {
		return reasonPodAffinity
	}
	for i := range a.unwanted {
		if n, _ := a.unwanted[i].at(slot); n > 0 {
			return reasonPodAnti
		}
	}
	for _, d := range a.repelled {
		if n, _ := d.at(slot); n > 0 {
			return reasonExistingAnti
		}
	}
	return ""
}

// near tells whether a slot has partners for all required affinity terms. The first pod of a
// group that wants to be together matches its own terms: as long as there is no partner
// anywhere, it may go wherever the labels are.
func (a *affinityCounts) near(slot int) bool {
	partners := true
	for i := range a.wanted {
		n, labelled := a.wanted[i].at(slot)
		if !labelled {
			return false
		}
		partners = partners && n > 0
	}
	return partners || (a.total == 0 && a.self)
}

// attraction is the sum of preferences around a slot.
func (a *affinityCounts) attraction(slot int) int64 {
	var sum int64
	for _, d := range a.preference {
		n, _ := d.at(slot)
		sum += n
	}
	return sum
}
