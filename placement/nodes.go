package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// HostPort is a port that a pod occupies on its node.
type HostPort struct {
	IP       string // "0.0.0.0" means every address
	Protocol corev1.Protocol
	Port     int32
}

// Conflicts tells whether two pods cannot have p and o on one node.
func (p HostPort) Conflicts(o HostPort) bool {
	return p.Port == o.Port && p.Protocol == o.Protocol &&
		(p.IP == o.IP || p.IP == anyAddress || o.IP == anyAddress)
}

const anyAddress = "0.0.0.0"

// Node is one node with the sums over its pods. Decisions read it and never write it.
type Node struct {
	Name        string
	Object      *corev1.Node // nil while only pods or a usage report have named the node
	Allocatable Resources
	Requested   Resources // by the view's own pods and by what the node granted to others
	// ScoredMilliCPU and ScoredMemory are Requested with defaults for containers that name no
	// request; only scores use them.
	ScoredMilliCPU int64
	ScoredMemory   int64            // bytes
	Images         map[string]int64 // size in bytes by image name

	hash    uint64
	slot    int              // index in View.slots; -1 without an object
	zone    string           // of Object
	pods    []*Pod           // in no particular order; each knows its index
	ports   map[HostPort]int // nil without any
	foreign *NodeUsage       // never nil
	// strangers are the pods of foreign.
	strangers []*Pod
	closed    string // see Closed
	counted   bool   // in View.zones
}

// Pods are the pods on the node that the view holds and that still take room, sorted by key.
func (n *Node) Pods() []*Pod { return sortPods(slices.Clone(n.pods)) }

// EachPod calls f for the node's pods in no particular order, for sums.
func (n *Node) EachPod(f func(*Pod)) {
	for _, pod := range n.pods {
		f(pod)
	}
}

// EachForeign calls f for the pods of other shards that the node has reported.
func (n *Node) EachForeign(f func(*Pod)) {
	for _, pod := range n.strangers {
		f(pod)
	}
}

// Closed is why the node gets no pods for now, whatever room it has, in words for users; "" if it may. See View.Close.
func (n *Node) Closed() string { return n.closed }

// PortTaken tells whether a pod on the node has a port that conflicts with p.
func (n *Node) PortTaken(p HostPort) bool {
	for taken := range n.ports {
		if taken.Conflicts(p) {
			return true
		}
	}
	return slices.ContainsFunc(n.foreign.Ports, p.Conflicts)
}

// UnexplainedPortTaken is like PortTaken for the ports that the node has given to pods of other
// shards of which it has told no more.
func (n *Node) UnexplainedPortTaken(p HostPort) bool {
	return slices.ContainsFunc(n.foreign.Ports, func(taken HostPort) bool {
		return taken.Conflicts(p) &&
			!slices.ContainsFunc(n.strangers, func(pod *Pod) bool { return slices.Contains(pod.Ports, taken) })
	})
}

// Zone is the node's zone within its region, "" without one.
func (n *Node) Zone() string { return n.zone }

// ZoneOf is a node's zone label, prefixed by its region where there is one.
func ZoneOf(node *corev1.Node) string {
	zone, region := node.Labels[corev1.LabelTopologyZone], node.Labels[corev1.LabelTopologyRegion]
	if region == "" {
		return zone
	}
	return region + "/" + zone
}

// Ready is the node's Ready condition, Unknown without one.
func (n *Node) Ready() corev1.ConditionStatus {
	if n.Object == nil {
		return corev1.ConditionUnknown
	}
	if c := NodeCondition(n.Object, corev1.NodeReady); c != nil {
		return c.Status
	}
	return corev1.ConditionUnknown
}

// Lost tells whether nobody hears from the node: its object is gone, its lease ran out
// (Ready is Unknown), or it is marked unreachable. A node that has not reported yet is not lost.
func (n *Node) Lost() bool {
	if n.Object == nil {
		return true
	}
	if HasTaint(n.Object, corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute) {
		return true
	}
	c := NodeCondition(n.Object, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionUnknown
}

// NodeCondition finds a condition, nil without one.
func NodeCondition(node *corev1.Node, kind corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == kind {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// HasTaint tells whether the node carries that taint.
func HasTaint(node *corev1.Node, key string, effect corev1.TaintEffect) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return t.Key == key && t.Effect == effect
	})
}

// Node returns the node of that name, if the view has heard of it.
func (v *View) Node(name string) (*Node, bool) {
	n, ok := v.nodes[name]
	return n, ok
}

// Slots are all nodes that have an object, in no particular order but the same one until a node
// comes or goes. The slice is the view's own.
func (v *View) Slots() []*Node { return v.slots }

// Ring lists the slots by the hashes of their nodes' names, for TieBreak. The slice is the view's
// own.
func (v *View) Ring() []int32 {
	if v.ring == nil {
		v.ring = make([]int32, len(v.slots))
		for slot := range v.slots {
			v.ring[slot] = int32(slot)
		}
		slices.SortFunc(v.ring, func(a, b int32) int {
			x, y := v.slots[a], v.slots[b]
			return cmp.Or(cmp.Compare(x.hash, y.hash), cmp.Compare(x.Name, y.Name))
		})
	}
	return v.ring
}

// Hash is the hash of the node's name.
func (n *Node) Hash() uint64 { return n.hash }

// Slot is the node's index in View.Slots, -1 if it has no object.
func (n *Node) Slot() int { return n.slot }

// Nodes lists the nodes that have an object, by name.
func (v *View) Nodes() []*Node {
	if v.names == nil {
		for _, n := range v.slots {
			v.names = append(v.names, n.Name)
		}
		slices.SortFunc(v.names, strings.Compare)
	}
	list := make([]*Node, len(v.names))
	for i, name := range v.names {
		list[i] = v.nodes[name]
	}
	return list
}

// Vanished lists the names of nodes that have no object but still have pods, sorted.
func (v *View) Vanished() []string {
	if len(v.nodes) == len(v.slots) {
		return nil
	}
	var names []string
	for name, n := range v.nodes {
		if n.Object == nil && len(n.pods) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// NodesWithImage counts the nodes that have an image.
func (v *View) NodesWithImage(name string) int { return v.imageNodes[name] }

func (v *View) nodeEntry(name string) *Node {
	n := v.nodes[name]
	if n == nil {
		n = &Node{Name: name, hash: Hash(name), slot: -1, foreign: &noUsage}
		v.nodes[name] = n
	}
	return n
}

func (v *View) upsertNode(o *corev1.Node) {
	n := v.nodeEntry(o.Name)
	v.moveImages(n, -1)
	if n.slot < 0 {
		n.slot = len(v.slots)
		v.slots = append(v.slots, n)
		v.names, v.ring, v.topologies = nil, nil, nil
	}
	old := n.Object
	if old != nil {
		v.relabelled(old.Labels, o.Labels)
	}
	n.Object = o
	n.Allocatable = ResourcesOf(o.Status.Allocatable)
	n.Images = nil
	if len(o.Status.Images) > 0 {
		n.Images = map[string]int64{}
	}
	for _, image := range o.Status.Images {
		for _, name := range image.Names {
			n.Images[name] = image.SizeBytes
		}
	}
	v.moveImages(n, 1)
	v.countNode(n)
	v.touchNode(n, old, o)
}

func (v *View) deleteNode(name string) {
	n := v.nodes[name]
	if n == nil || n.Object == nil {
		return
	}
	v.moveImages(n, -1)
	last := v.slots[len(v.slots)-1]
	v.slots[n.slot] = last
	last.slot = n.slot
	v.slots = v.slots[:len(v.slots)-1]
	v.names, v.ring, v.topologies = nil, nil, nil
	old := n.Object
	n.Object, n.Allocatable, n.Images, n.slot, n.closed = nil, Resources{}, nil, -1, ""
	v.countNode(n)
	v.dropUsage(n)
	v.touchNode(n, old, nil)
	v.forgetNode(n)
}

// forgetNode drops an entry that nothing names any more.
func (v *View) forgetNode(n *Node) {
	if n.Object == nil && len(n.pods) == 0 && n.foreign.Node == "" {
		delete(v.nodes, n.Name)
	}
}

func (v *View) moveImages(n *Node, by int) {
	for name := range n.Images {
		v.imageNodes[name] += by
		if v.imageNodes[name] == 0 {
			delete(v.imageNodes, name)
		}
	}
}

// countNode keeps what the view knows of zones and of nodes in trouble, after a node's object has come, changed or gone.
func (v *View) countNode(n *Node) {
	zone := ""
	if n.Object != nil {
		zone = ZoneOf(n.Object)
	}
	if n.counted && (n.Object == nil || zone != n.zone) {
		if v.zones[n.zone]--; v.zones[n.zone] == 0 {
			delete(v.zones, n.zone)
		}
		n.counted = false
	}
	if n.zone = zone; n.Object != nil && !n.counted {
		v.zones[zone]++
		n.counted = true
	}
	if n.Object != nil && (n.Ready() != corev1.ConditionTrue || slices.ContainsFunc(n.Object.Spec.Taints, evicts)) {
		v.troubled[n.Name] = n
	} else {
		delete(v.troubled, n.Name)
	}
}

func evicts(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }

// Zones is how many nodes each zone has. It is the view's own and must not be changed.
func (v *View) Zones() map[string]int { return v.zones }

// Troubled lists the nodes whose pods may have to leave: those that are not ready or have a NoExecute taint, sorted by name. Lost nodes
// are among them.
func (v *View) Troubled() []*Node {
	return slices.SortedFunc(maps.Values(v.troubled), func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
}
