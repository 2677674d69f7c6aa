package placement

import "maps"

// Topology groups the nodes that have an object by a label's value. It is shared and must not be changed.
type Topology struct {
	Key     string
	Domain  []int32   // per slot: index of the label's value; -1 without the label
	Members [][]int32 // per domain: its slots, rising
}

// maxTopologies bounds what is kept: the labels are those that pods name in spreading and affinities, which is up to users.
const maxTopologies = 16

// Topology groups the nodes by a label. It is worked out once, until a node comes, goes or changes its labels: every decision needs the ones
// of zones and of host names, and looking at the labels of 10,000 nodes takes longer than the rest of it.
func (v *View) Topology(key string) *Topology {
	if t := v.topologies[key]; t != nil {
		return t
	}
	t := newTopology(key, v.slots)
	if v.topologies == nil || len(v.topologies) >= maxTopologies {
		v.topologies = map[string]*Topology{}
	}
	v.topologies[key] = t
	return t
}

func newTopology(key string, slots []*Node) *Topology {
	t := &Topology{Key: key, Domain: make([]int32, len(slots))}
	index := map[string]int32{}
	var sizes []int
	for slot, n := range slots {
		value, ok := n.Object.Labels[key]
		if !ok {
			t.Domain[slot] = -1
			continue
		}
		i, known := index[value]
		if !known {
			i = int32(len(sizes))
			index[value] = i
			sizes = append(sizes, 0)
		}
		t.Domain[slot] = i
		sizes[i]++
	}
	t.Members = make([][]int32, len(sizes))
	all := make([]int32, len(slots)) // the domains share it
	for i, size := range sizes {
		t.Members[i], all = all[:0:size], all[size:]
	}
	for slot, i := range t.Domain {
		if i >= 0 {
			t.Members[i] = append(t.Members[i], int32(slot))
		}
	}
	return t
}

// relabelled forgets the topologies if a node that stays has other labels than before.
func (v *View) relabelled(before, now map[string]string) {
	if v.topologies != nil && !maps.Equal(before, now) {
		v.topologies = nil
	}
}
