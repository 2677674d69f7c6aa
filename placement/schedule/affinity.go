package schedule

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"shoal/placement"
)

// affinityCounts says per topology domain what other pods and the pod itself think of each other.
type affinityCounts struct {
	self       bool // the pod matches all its own required terms
	total      int64
	wanted     []domainCount // per required affinity term: pods that match all of them
	unwanted   []domainCount // per required anti-affinity term: pods that match it
	repelled   []domainCount // per topology key: pods whose anti-affinity is against the pod
	repellers  int64         // sum of repelled
	preference []domainCount // per topology key: sum of weights
	namespace  labels.Set
}

// domainCount is an amount per domain of a topology.
type domainCount struct {
	topology *placement.Topology
	amount   []int64
}

func (b *batch) domainCount(key string) domainCount {
	t := b.topology(key)
	return domainCount{topology: t, amount: make([]int64, len(t.Members))}
}

func (d *domainCount) add(slot int, by int64) {
	if domain := d.topology.Domain[slot]; domain >= 0 {
		d.amount[domain] += by
	}
}

// at is the amount around a slot, and whether the slot has the label at all.
func (d *domainCount) at(slot int) (int64, bool) {
	domain := d.topology.Domain[slot]
	if domain < 0 {
		return 0, false
	}
	return d.amount[domain], true
}

// required pod affinity of other pods draws this one near with that weight; upstream's
// hardPodAffinityWeight.
const hardPodAffinityWeight = 1

func (c *class) countAffinity() affinityCounts {
	a := affinityCounts{namespace: c.batch.view.NamespaceLabels(c.pod.Object.Namespace)}
	if own := c.pod.Affinity; own != nil {
		a.self = c.matchesAll(c.pod.Object.Namespace, c.pod.Object.Labels)
		for i := range own.Required {
			a.wanted = append(a.wanted, c.batch.domainCount(own.Required[i].TopologyKey))
		}
		for i := range own.RequiredAnti {
			a.unwanted = append(a.unwanted, c.batch.domainCount(own.RequiredAnti[i].TopologyKey))
		}
		a.countOwn(c)
	}
	c.batch.view.EachAffinitySet(func(s *placement.AffinitySet) { a.addOthers(c, s.Affinity, everyNode(s)) })
	for _, s := range c.batch.log {
		if s.pod != nil {
			a.add(c, s.pod, s.slot, 1)
		}
	}
	return a
}

// amounts calls a function for slots with the number of pods there.
type amounts func(func(slot int, pods int64))

func everyNode(s *placement.AffinitySet) amounts {
	return func(f func(int, int64)) {
		s.Each(func(n *placement.Node, pods int) {
			if n.Slot() >= 0 {
				f(n.Slot(), int64(pods))
			}
		})
	}
}

func oneNode(slot int, by int64) amounts {
	return func(f func(int, int64)) { f(slot, by) }
}

// countOwn counts the pods of the view for the terms of the class.
func (a *affinityCounts) countOwn(c *class) {
	own := c.pod.Affinity
	if len(own.Required) > 0 {
		own.Required[0].EachNamespace(c.batch.view, func(namespace string) {
			c.batch.view.EachLabelSet(namespace, func(s *placement.LabelSet) {
				if c.matchesAll(namespace, s.Labels) {
					eachNode(s, func(slot int, pods int64) { a.want(slot, pods) })
				}
			})
		})
	}
	for i := range own.RequiredAnti {
		c.eachMatching(&own.RequiredAnti[i], func(slot int, pods int64) { a.unwanted[i].add(slot, pods) })
	}
	for i := range own.Preferred {
		term := &own.Preferred[i]
		c.eachMatching(term, func(slot int, pods int64) { a.prefer(c.batch, term.TopologyKey, slot, pods*term.Weight) })
	}
}

func eachNode(s *placement.LabelSet, f amount) {
	s.Each(func(n *placement.Node, staying, leaving int) {
		if n.Slot() >= 0 {
			f(n.Slot(), int64(staying+leaving))
		}
	})
}

// amount is told that there are so many pods on a slot.
type amount = func(slot int, pods int64)

// eachMatching calls f for the slots that have pods of the view that a term is about.
func (c *class) eachMatching(term *placement.AffinityTerm, f amount) {
	v := c.batch.view
	term.EachNamespace(v, func(namespace string) {
		namespaceLabels := v.NamespaceLabels(namespace)
		v.EachLabelSet(namespace, func(s *placement.LabelSet) {
			if term.MatchesSet(namespace, s.Labels, namespaceLabels) {
				eachNode(s, f)
			}
		})
	})
}

func (a *affinityCounts) want(slot int, pods int64) {
	for i := range a.wanted {
		if a.wanted[i].topology.Domain[slot] >= 0 {
			a.wanted[i].add(slot, pods)
			a.total += pods
		}
	}
}

// add counts a pod on a node, or takes it off with by = -1.
func (a *affinityCounts) add(c *class, pod *placement.Pod, slot int, by int64) {
	if own := c.pod.Affinity; own != nil {
		if len(own.Required) > 0 && c.matchesAll(pod.Object.Namespace, pod.Object.Labels) {
			a.want(slot, by)
		}
		namespace := c.batch.view.NamespaceLabels(pod.Object.Namespace)
		for i := range own.RequiredAnti {
			if own.RequiredAnti[i].Matches(pod.Object, namespace) {
				a.unwanted[i].add(slot, by)
			}
		}
		for i := range own.Preferred {
			if term := &own.Preferred[i]; term.Matches(pod.Object, namespace) {
				a.prefer(c.batch, term.TopologyKey, slot, by*term.Weight)
			}
		}
	}
	if pod.Affinity != nil {
		a.addOthers(c, pod.Affinity, oneNode(slot, by))
	}
}

// matchesAll tells whether pods with these labels match every required affinity term of the class.
func (c *class) matchesAll(namespace string, set labels.Set) bool {
	terms := c.pod.Affinity.Required
	if len(terms) == 0 {
		return false
	}
	namespaceLabels := c.batch.view.NamespaceLabels(namespace)
	for i := range terms {
		if !terms[i].MatchesSet(namespace, set, namespaceLabels) {
			return false
		}
	}
	return true
}

// addOthers counts pods whose own terms may be about the class.
func (a *affinityCounts) addOthers(c *class, theirs *placement.PodAffinity, where amounts) {
	for i := range theirs.RequiredAnti {
		if term := &theirs.RequiredAnti[i]; term.Matches(c.pod.Object, a.namespace) {
			d := byKey(&a.repelled, c.batch, term.TopologyKey)
			where(func(slot int, pods int64) {
				if d.topology.Domain[slot] >= 0 {
					d.add(slot, pods)
					a.repellers += pods
				}
			})
		}
	}
	for i := range theirs.Preferred {
		if term := &theirs.Preferred[i]; term.Matches(c.pod.Object, a.namespace) {
			where(func(slot int, pods int64) { a.prefer(c.batch, term.TopologyKey, slot, pods*term.Weight) })
		}
	}
	for i := range theirs.Required {
		if term := &theirs.Required[i]; term.Matches(c.pod.Object, a.namespace) {
			where(func(slot int, pods int64) { a.prefer(c.batch, term.TopologyKey, slot, pods*hardPodAffinityWeight) })
		}
	}
}

// byKey finds or makes the count of a topology key.
func byKey(counts *[]domainCount, b *batch, key string) *domainCount {
	for i := range *counts {
		if (*counts)[i].topology.Key == key {
			return &(*counts)[i]
		}
	}
	*counts = append(*counts, b.domainCount(key))
	return &(*counts)[len(*counts)-1]
}

func (a *affinityCounts) prefer(b *batch, key string, slot int, weight int64) {
	byKey(&a.preference, b, key).add(slot, weight)
}

// constrains tells whether any required (anti-)affinity bears on the class. As upstream has it,
// that of pods that are only nominated to a node does not, if no other does.
func (a *affinityCounts) constrains() bool {
	return len(a.wanted) > 0 || len(a.unwanted) > 0 || a.repellers > 0
}

// affinityShift is how the pods of a trial change the counts around its slot.
type affinityShift struct {
	total            int64
	wanted, unwanted []int64 // as in affinityCounts
	repelled         map[string]int64
}

// shift counts a pod that comes or goes on a slot.
func (s *affinityShift) shift(c *class, p *placement.Pod, slot int, by int64) {
	a := &c.affinity
	labelled := func(d *domainCount) bool { return d.topology.Domain[slot] >= 0 }
	if own := c.pod.Affinity; own != nil {
		namespace := c.batch.view.NamespaceLabels(p.Object.Namespace)
		if len(own.Required) > 0 && c.matchesAll(p.Object.Namespace, p.Object.Labels) {
			s.wanted = grown(s.wanted, len(a.wanted))
			for i := range a.wanted {
				if labelled(&a.wanted[i]) {
					s.wanted[i] += by
					s.total += by
				}
			}
		}
		for i := range own.RequiredAnti {
			if labelled(&a.unwanted[i]) && own.RequiredAnti[i].Matches(p.Object, namespace) {
				s.unwanted = grown(s.unwanted, len(a.unwanted))
				s.unwanted[i] += by
			}
		}
	}
	if p.Affinity == nil {
		return
	}
	for i := range p.Affinity.RequiredAnti {
		term := &p.Affinity.RequiredAnti[i]
		if _, ok := c.batch.nodes[slot].Object.Labels[term.TopologyKey]; ok && term.Matches(c.pod.Object, a.namespace) {
			if s.repelled == nil {
				s.repelled = map[string]int64{}
			}
			s.repelled[term.TopologyKey] += by
		}
	}
}

func grown(s []int64, n int) []int64 {
	if s == nil {
		return make([]int64, n)
	}
	return s
}

func at(s []int64, i int) int64 {
	if s == nil {
		return 0
	}
	return s[i]
}

// allows tells whether all required (anti-)affinities hold at a slot.
func (a *affinityCounts) allows(slot int) bool {
	return !a.constrains() || a.reason(slot, &affinityShift{}) == ""
}

// reason says which required (anti-)affinity does not hold at a slot, "" if all do. Only a
// missing affinity partner is beyond the help of preemption.
func (a *affinityCounts) reason(slot int, s *affinityShift) string {
	if !a.constrains() {
		return ""
	}
	if !a.near(slot, s) {
		return reasonPodAffinity
	}
	for i := range a.unwanted {
		if n, _ := a.unwanted[i].at(slot); n+at(s.unwanted, i) > 0 {
			return reasonPodAnti
		}
	}
	for i := range a.repelled {
		if n, _ := a.repelled[i].at(slot); n+s.repelled[a.repelled[i].topology.Key] > 0 {
			return reasonExistingAnti
		}
	}
	for key, n := range s.repelled {
		known := slices.ContainsFunc(a.repelled, func(d domainCount) bool { return d.topology.Key == key })
		if !known && n > 0 {
			return reasonExistingAnti
		}
	}
	return ""
}

// near tells whether a slot has partners for all required affinity terms. The first pod of a
// group that wants to be together matches its own terms: as long as there is no partner
// anywhere, it may go wherever the labels are.
func (a *affinityCounts) near(slot int, s *affinityShift) bool {
	partners := true
	for i := range a.wanted {
		n, labelled := a.wanted[i].at(slot)
		if !labelled {
			return false
		}
		partners = partners && n+at(s.wanted, i) > 0
	}
	return partners || (a.total+s.total == 0 && a.self)
}

// attraction is the sum of preferences around a slot.
func (a *affinityCounts) attraction(slot int) int64 {
	var sum int64
	for i := range a.preference {
		n, _ := a.preference[i].at(slot)
		sum += n
	}
	return sum
}
