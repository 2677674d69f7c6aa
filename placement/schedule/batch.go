package schedule

import (
	"slices"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// maxClasses bounds the memory that shared answers take: about 60 bytes per class and node.
const maxClasses = 64

// batch is the evolving picture of one call: the view, plus what was decided so far.
type batch struct {
	view       *placement.View
	now        time.Time
	nodes      []node
	ranks      []int32 // per slot: its place on the ring; nil until somebody asks
	log        []step
	classes    map[string]*class
	topologies map[string]*placement.Topology
	nominated  [][]*placement.Pod // per slot: waiting pods for which room is kept there
	nominee    map[types.UID]int  // the reverse
	claims     claimBook
	budgets    *budgetBook // nil until somebody looks for victims
	doomed     map[types.UID]bool
	bearings   map[string]string
	// labelsMatter tells that pods of this batch, or pods nominated to nodes, have inter-pod
	// affinity, so that any label may come to matter.
	labelsMatter bool
	// oneByOne turns off grouping: every decision looks at every node. Tests compare the two.
	oneByOne bool
}

// node is a node with the room that decisions of this batch have taken.
type node struct {
	*placement.Node
	requested      placement.Resources
	scoredMilliCPU int64
	scoredMemory   int64
	ports          []placement.HostPort // of pods placed by this batch
	placed         []*placement.Pod     // by this batch
}

// step is one thing that happened in the batch. With pod set the pod was placed on the slot;
// without, the pods nominated to the slot have changed, or those that can be preempted there.
type step struct {
	pod  *placement.Pod
	slot int
}

// newBatch starts a batch that will decide the given pods, and no others.
func newBatch(v *placement.View, queue []*placement.Pod, now time.Time) *batch {
	slots := v.Slots()
	b := &batch{
		view: v, now: now, nodes: make([]node, len(slots)),
		classes: map[string]*class{}, topologies: map[string]*placement.Topology{},
		nominated: make([][]*placement.Pod, len(slots)), nominee: map[types.UID]int{}, doomed: map[types.UID]bool{},
		bearings: map[string]string{},
	}
	for _, p := range queue {
		b.labelsMatter = b.labelsMatter || p.Affinity != nil
	}
	for i, n := range slots {
		b.nodes[i] = node{Node: n, requested: n.Requested, scoredMilliCPU: n.ScoredMilliCPU, scoredMemory: n.ScoredMemory}
	}
	v.EachNominated(func(n *placement.Node, p *placement.Pod) {
		b.nominated[n.Slot()] = append(b.nominated[n.Slot()], p)
		b.nominee[p.Object.UID] = n.Slot()
		b.labelsMatter = b.labelsMatter || p.Affinity != nil
	})
	return b
}

// decide places one pod, finds whom it could displace, or says why neither is possible.
func (b *batch) decide(pod *placement.Pod) Decision {
	c := b.classOf(pod)
	if len(b.nodes) == 0 {
		return Decision{Pod: pod.Object, Withdraw: pod.Object.Status.NominatedNodeName != "",
			Unschedulable: &Unschedulable{Reasons: map[string]int{}, Message: messageNoNodes}}
	}
	if c.refusal != "" {
		return b.refuse(c, pod)
	}
	slot := b.keptRoom(c, pod)
	if slot < 0 {
		slot = c.best(placement.Hash(string(pod.Object.UID)))
	}
	if slot < 0 {
		return b.displace(c, pod)
	}
	d := Decision{Pod: pod.Object, Node: b.nodes[slot].Name}
	if c.volumes != nil {
		d.Provision, d.Bind = b.take(c.volumes, b.nodes[slot].Object)
	}
	b.place(pod, slot)
	return d
}

// refuse answers for a class that no node needs to be asked about.
func (b *batch) refuse(c *class, pod *placement.Pod) Decision {
	n := len(b.nodes)
	d := Decision{Pod: pod.Object, Unschedulable: &Unschedulable{Nodes: n, Reasons: map[string]int{c.refusal: n}}}
	preemption := messageNever
	if !c.never() {
		preemption = message(n, "", map[string]int{reasonNotHelpful: n}, "")
		d.Withdraw = pod.Object.Status.NominatedNodeName != ""
	}
	d.Unschedulable.Message = message(n, c.refusal, nil, preemption)
	return d
}

// keptRoom is the slot nominated to the pod if it can go there now, -1 otherwise. It is preferred
// to every other, or the room would have been made in vain.
func (b *batch) keptRoom(c *class, pod *placement.Pod) int {
	slot, ok := b.nominee[pod.Object.UID]
	if !ok || !c.candidate(slot) {
		return -1
	}
	if objection := c.judge(slot, pod.Object.UID); objection.reasons != nil {
		return -1
	}
	return slot
}

func (b *batch) place(pod *placement.Pod, slot int) {
	n := &b.nodes[slot]
	if len(pod.Requests.Scalar) > 0 {
		n.requested = n.requested.Plus(pod.Requests) // the map may be the view's
	} else {
		n.requested.Add(pod.Requests)
	}
	n.scoredMilliCPU += pod.HeldMilliCPU
	n.scoredMemory += pod.HeldMemory
	n.ports = append(n.ports, pod.Ports...)
	n.placed = append(n.placed, pod)
	b.unnominate(pod.Object.UID)
	b.log = append(b.log, step{pod, slot})
}

// nominate keeps room for a pod on a slot.
func (b *batch) nominate(pod *placement.Pod, slot int) {
	b.unnominate(pod.Object.UID)
	b.nominated[slot] = append(b.nominated[slot], pod)
	b.nominee[pod.Object.UID] = slot
	b.log = append(b.log, step{slot: slot})
}

func (b *batch) unnominate(pod types.UID) {
	slot, ok := b.nominee[pod]
	if !ok {
		return
	}
	delete(b.nominee, pod)
	b.nominated[slot] = slices.DeleteFunc(slices.Clone(b.nominated[slot]), func(p *placement.Pod) bool { return p.Object.UID == pod })
	b.log = append(b.log, step{slot: slot})
}

// rankOf is a slot's place on the ring.
func (b *batch) rankOf(slot int32) int32 {
	if b.ranks == nil {
		b.ranks = make([]int32, len(b.nodes))
		for rank, slot := range b.view.Ring() {
			b.ranks[slot] = int32(rank)
		}
	}
	return b.ranks[slot]
}

// rankFrom is the place on the ring of the first slot at or after a hash.
func (b *batch) rankFrom(hash uint64) int32 {
	ring := b.view.Ring()
	return int32(sort.Search(len(ring), func(k int) bool { return b.nodes[ring[k]].Hash() >= hash }))
}

// rivals are the pods nominated to a slot to which a pod of that priority must leave their room.
func (b *batch) rivals(slot int, priority int32, except types.UID) []*placement.Pod {
	all := b.nominated[slot]
	if len(all) == 0 {
		return nil
	}
	var rivals []*placement.Pod
	for _, p := range all {
		if p.Object.UID != except && corev1helpers.PodPriority(p.Object) >= priority {
			rivals = append(rivals, p)
		}
	}
	return rivals
}

// classOf finds or makes the class of pods equal to this one, up to date with the batch.
func (b *batch) classOf(pod *placement.Pod) *class {
	key := b.signature(pod)
	c := b.classes[key]
	if c == nil {
		if len(b.classes) >= maxClasses {
			clear(b.classes)
		}
		if c = newClass(b, pod); c.volumes != nil {
			return c // what others do with volumes can change anything
		}
		b.classes[key] = c
	}
	c.catchUp()
	return c
}

// topology is the same one for a label during the whole batch: who compares topologies compares pointers.
func (b *batch) topology(key string) *placement.Topology {
	t := b.topologies[key]
	if t == nil {
		t = b.view.Topology(key)
		b.topologies[key] = t
	}
	return t
}

// eachOn calls f for every pod on a slot: those of the view, those of other shards that the node
// has reported, and those that this batch has placed.
func (b *batch) eachOn(slot int, f func(*placement.Pod)) {
	n := &b.nodes[slot]
	n.EachPod(f)
	n.EachForeign(f)
	for _, p := range n.placed {
		f(p)
	}
}

// budgetBook is what the disruption budgets of the shard's namespaces still allow.
type budgetBook struct {
	in map[string][]*budget
	// epoch changes with every disruption that the batch has charged.
	epoch int
}

type budget struct {
	selector labels.Selector
	allowed  int32
	// counted are pods whose disruption the budget has been charged for already.
	counted map[string]bool
}

func (b *batch) budgetsIn(namespace string) []*budget {
	if b.budgets == nil {
		b.budgets = &budgetBook{in: map[string][]*budget{}}
		for _, pdb := range b.view.Budgets.All() {
			if kept := newBudget(pdb); kept != nil {
				b.budgets.in[pdb.Namespace] = append(b.budgets.in[pdb.Namespace], kept)
			}
		}
	}
	return b.budgets.in[namespace]
}

// newBudget returns nil for a budget that selects nothing.
func newBudget(pdb *policyv1.PodDisruptionBudget) *budget {
	selector := selectorOf(pdb.Spec.Selector)
	if selector.Empty() {
		return nil
	}
	kept := &budget{selector: selector, allowed: pdb.Status.DisruptionsAllowed, counted: map[string]bool{}}
	for name := range pdb.Status.DisruptedPods {
		kept.counted[name] = true
	}
	return kept
}

// covers tells whether evicting the pod is charged to the budget.
func (k *budget) covers(pod *corev1.Pod) bool {
	return len(pod.Labels) > 0 && !k.counted[pod.Name] && k.selector.Matches(labels.Set(pod.Labels))
}
