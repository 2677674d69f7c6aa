package schedule

import (
	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// maxClasses bounds the memory that shared answers take: about 50 bytes per class and node.
const maxClasses = 64

// batch is the evolving picture of one call: the view, plus what was decided so far.
type batch struct {
	view       *placement.View
	nodes      []node
	placed     []placed
	classes    map[string]*class
	topologies map[string]*topology
}

// node is a node with the room that decisions of this batch have taken.
type node struct {
	*placement.Node
	hash           uint64
	requested      placement.Resources
	scoredMilliCPU int64
	scoredMemory   int64
	ports          []placement.HostPort // of pods placed by this batch
}

// placed is one decision of this batch: a pod and the slot of its node.
type placed struct {
	pod  *placement.Pod
	slot int
}

func newBatch(v *placement.View) *batch {
	slots := v.Slots()
	b := &batch{
		view: v, nodes: make([]node, len(slots)),
		classes: map[string]*class{}, topologies: map[string]*topology{},
	}
	for i, n := range slots {
		b.nodes[i] = node{
			Node: n, hash: placement.Hash(n.Name), requested: n.Requested,
			scoredMilliCPU: n.ScoredMilliCPU, scoredMemory: n.ScoredMemory,
		}
	}
	return b
}

// decide places one pod.
func (b *batch) decide(pod *placement.Pod) Decision {
	c := b.classOf(pod)
	if c.refusal != "" {
		return Decision{Pod: pod.Object, Unschedulable: &Unschedulable{
			Nodes: len(b.nodes), Reasons: map[string]int{c.refusal: len(b.nodes)},
			Message: message(len(b.nodes), c.refusal, nil, c.preemption(map[string]int{reasonNotHelpful: len(b.nodes)})),
		}}
	}
	slot := c.best(placement.Hash(string(pod.Object.UID)))
	if slot < 0 {
		return Decision{Pod: pod.Object, Unschedulable: c.diagnose()}
	}
	b.place(pod, slot)
	return Decision{Pod: pod.Object, Node: b.nodes[slot].Name, Provision: c.provision}
}

func (b *batch) place(pod *placement.Pod, slot int) {
	n := &b.nodes[slot]
	n.requested = n.requested.Plus(pod.Requests)
	n.scoredMilliCPU += pod.ScoredMilliCPU
	n.scoredMemory += pod.ScoredMemory
	n.ports = append(n.ports, pod.Ports...)
	b.placed = append(b.placed, placed{pod, slot})
}

// classOf finds or makes the class of pods equal to this one, up to date with the batch.
func (b *batch) classOf(pod *placement.Pod) *class {
	key := signature(pod)
	c := b.classes[key]
	if c == nil {
		if len(b.classes) >= maxClasses {
			clear(b.classes)
		}
		c = newClass(b, pod)
		b.classes[key] = c
	}
	c.catchUp()
	return c
}

// topology groups the nodes by a label.
type topology struct {
	domain []int32 // per slot: index of the label's value; -1 without the label
	size   int     // number of values
}

func (b *batch) topology(key string) *topology {
	if t := b.topologies[key]; t != nil {
		return t
	}
	t := &topology{domain: make([]int32, len(b.nodes))}
	index := map[string]int32{}
	for slot := range b.nodes {
		value, ok := b.nodes[slot].Object.Labels[key]
		if !ok {
			t.domain[slot] = -1
			continue
		}
		i, known := index[value]
		if !known {
			i = int32(len(index))
			index[value] = i
		}
		t.domain[slot] = i
	}
	t.size = len(index)
	b.topologies[key] = t
	return t
}

// slotOf is the slot of a placed pod's node, -1 if the node has no object.
func (b *batch) slotOf(pod *placement.Pod) int {
	if n, ok := b.view.Node(pod.Object.Spec.NodeName); ok {
		return n.Slot()
	}
	return -1
}

// takesRoom tells whether a pod is on a node and counts for spreading and affinity.
func takesRoom(pod *corev1.Pod) bool { return pod.Spec.NodeName != "" && !placement.Finished(pod) }
