package placement

import (
	"encoding/binary"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// LabelSet stands for all pods of one namespace that have equal labels and take room on a node.
// A selector is asked once per set instead of once per pod, so that counting the pods around the
// nodes costs as much as there are different pods and nodes that have them.
type LabelSet struct {
	Namespace string
	Labels    labels.Set
	at        map[*Node]tally
}

// tally counts pods on a node.
type tally struct{ staying, leaving int32 }

// Each calls f for every node that has such pods, in no particular order, with the number of
// those that stay and of those that are terminating.
func (s *LabelSet) Each(f func(n *Node, staying, leaving int)) {
	for n, t := range s.at {
		f(n, int(t.staying), int(t.leaving))
	}
}

// AffinitySet stands for all placed pods of one namespace that have equal inter-pod affinity.
type AffinitySet struct {
	Affinity *PodAffinity
	at       map[*Node]int
}

// Each calls f for every node that has such pods, in no particular order, with their number.
func (s *AffinitySet) Each(f func(n *Node, pods int)) {
	for n, pods := range s.at {
		f(n, pods)
	}
}

// EachLabelSet calls f for the label sets of a namespace, in no particular order.
func (v *View) EachLabelSet(namespace string, f func(*LabelSet)) {
	for _, s := range v.labelSets[namespace] {
		f(s)
	}
}

// EachPopulated calls f for every namespace that has pods on nodes, in no particular order; pods
// of other shards, as far as nodes have reported them, are among them.
func (v *View) EachPopulated(f func(namespace string)) {
	for namespace := range v.labelSets {
		f(namespace)
	}
}

// EachAffinitySet calls f for every affinity that some placed pod has, in no particular order.
func (v *View) EachAffinitySet(f func(*AffinitySet)) {
	for _, s := range v.affinitySets {
		f(s)
	}
}

// ClaimUsers is how many placed pods use a claim by name.
func (v *View) ClaimUsers(namespace, name string) int {
	return v.claimUsers[claimKey{namespace, name}]
}

type claimKey struct{ namespace, name string }

// countIn takes a pod on a node into the sets.
func (v *View) countIn(p *Pod, n *Node) {
	if p.labelKey == "" {
		p.labelKey = labelKey(p.Object.Labels)
	}
	namespace := p.Object.Namespace
	s := v.labelSets[namespace][p.labelKey]
	if s == nil {
		s = &LabelSet{Namespace: namespace, Labels: p.Object.Labels, at: map[*Node]tally{}}
		addTo(v.labelSets, namespace, p.labelKey, s)
	}
	t := s.at[n]
	if p.Object.DeletionTimestamp == nil {
		t.staying++
	} else {
		t.leaving++
	}
	s.at[n] = t
	if p.Affinity != nil {
		a := v.affinitySets[p.Affinity.key]
		if a == nil {
			a = &AffinitySet{Affinity: p.Affinity, at: map[*Node]int{}}
			v.affinitySets[p.Affinity.key] = a
		}
		p.Affinity = a.Affinity // equal ones are kept once
		a.at[n]++
	}
	p.eachClaim(func(key claimKey) { v.claimUsers[key]++ })
}

// countOut takes a pod out of the sets that countIn took it into.
func (v *View) countOut(p *Pod, n *Node) {
	namespace := p.Object.Namespace
	s := v.labelSets[namespace][p.labelKey]
	t := s.at[n]
	if p.Object.DeletionTimestamp == nil {
		t.staying--
	} else {
		t.leaving--
	}
	if s.at[n] = t; t == (tally{}) {
		delete(s.at, n)
	}
	if len(s.at) == 0 {
		dropFrom(v.labelSets, namespace, p.labelKey)
	}
	if p.Affinity != nil {
		a := v.affinitySets[p.Affinity.key]
		if a.at[n]--; a.at[n] == 0 {
			delete(a.at, n)
		}
		if len(a.at) == 0 {
			delete(v.affinitySets, p.Affinity.key)
		}
	}
	p.eachClaim(func(key claimKey) {
		if v.claimUsers[key]--; v.claimUsers[key] == 0 {
			delete(v.claimUsers, key)
		}
	})
}

func (p *Pod) eachClaim(f func(claimKey)) {
	for i := range p.Object.Spec.Volumes {
		if claim := p.Object.Spec.Volumes[i].PersistentVolumeClaim; claim != nil {
			f(claimKey{p.Object.Namespace, claim.ClaimName})
		}
	}
}

// labelKey is equal for equal labels only, and never empty.
func labelKey(set map[string]string) string {
	var buf [256]byte
	key := binary.AppendUvarint(buf[:0], uint64(len(set)))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		key = append(binary.AppendUvarint(key, uint64(len(name))), name...)
		key = append(binary.AppendUvarint(key, uint64(len(set[name]))), set[name]...)
	}
	return string(key)
}
