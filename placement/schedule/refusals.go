package schedule

import (
	"maps"
	"slices"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// refusals remember why each slot does not suit a class and whom the class could displace there.
// After a step of the batch only the slots that it bears on are asked again: the one it happened
// on, or all of them if the class has constraints that look beyond a node.
type refusals struct {
	objections []objection
	reasons    map[string]int // of the objections
	stale      []int32        // slots to be asked again

	candidates []candidate
	unasked    []int32              // slots whose candidate is not known
	order      *btree.BTreeG[offer] // slots that help, the cheapest first
	unhelpful  map[string]int       // why others do not
	asked      int                  // slots that were asked at all
	budgets    int                  // epoch of the budgets that candidates were found with
}

// offer is a slot in the order of candidates.
type offer struct {
	*candidate
	rank int32 // of the slot on the ring
	slot int32
}

// forget takes note of a step.
func (c *class) forget(s step) {
	switch {
	case c.refusals.objections == nil:
	case c.constrained() || c.perNode():
		c.refusals = refusals{}
	default:
		c.refusals.stale = append(c.refusals.stale, int32(s.slot))
	}
}

// refresh brings the refusals up to date.
func (c *class) refresh() *refusals {
	r := &c.refusals
	if r.objections == nil {
		n := len(c.batch.nodes)
		*r = refusals{
			objections: make([]objection, n), candidates: make([]candidate, n), reasons: map[string]int{}, unhelpful: map[string]int{},
			order: btree.NewBTreeGOptions(offer.before, btree.Options{NoLocks: true}),
		}
		for slot := range n {
			r.set(int32(slot), c.objectionAt(slot))
		}
		return r
	}
	for _, slot := range r.stale {
		r.set(slot, c.objectionAt(int(slot)))
	}
	r.stale = r.stale[:0]
	return r
}

// set replaces a slot's objection, and forgets its candidate.
func (r *refusals) set(slot int32, o objection) {
	count(r.reasons, r.objections[slot].reasons, -1)
	r.objections[slot] = o
	count(r.reasons, o.reasons, 1)
	r.drop(slot)
	if o.reasons != nil && !o.hopeless {
		r.unasked = append(r.unasked, slot)
	}
}

// drop forgets a slot's candidate.
func (r *refusals) drop(slot int32) {
	k := &r.candidates[slot]
	if !k.known {
		return
	}
	r.asked--
	if k.victims != nil {
		r.order.Delete(offer{k, k.rank, slot})
	}
	count(r.unhelpful, k.hopeless, -1)
	*k = candidate{}
}

// put remembers a slot's candidate.
func (r *refusals) put(slot int32, k candidate) {
	r.candidates[slot] = k
	r.asked++
	if k.victims != nil {
		r.order.Set(offer{&r.candidates[slot], k.rank, slot})
	}
	count(r.unhelpful, k.hopeless, 1)
}

func count(histogram map[string]int, reasons []string, by int) {
	for _, reason := range reasons {
		if histogram[reason] += by; histogram[reason] == 0 {
			delete(histogram, reason)
		}
	}
}

var notNamed = objection{[]string{reasonNamed}, true}

func (c *class) objectionAt(slot int) objection {
	if !c.candidate(slot) {
		return notNamed
	}
	return c.judge(slot, "")
}

// displace looks for pods to displace for one that fits nowhere, and explains.
func (b *batch) displace(c *class, pod *placement.Pod) Decision {
	r := c.refresh()
	// The room that is kept for the pod itself is kept from its equals only.
	if own, nominated := b.nominee[pod.Object.UID]; nominated && c.candidate(own) {
		r.set(int32(own), c.judge(own, pod.Object.UID))
		defer func() { c.refusals.stale = append(c.refusals.stale, int32(own)) }()
	}
	n := len(b.nodes)
	d := Decision{Pod: pod.Object, Unschedulable: &Unschedulable{Nodes: n, Reasons: maps.Clone(r.reasons)}}
	outcome := messageNever
	switch {
	case c.never():
	case b.waitsForVictims(c, pod, r):
		outcome = messageTerminating
	default:
		d.Preempt, outcome = b.preempt(c, pod, r)
		d.Withdraw = d.Preempt == nil && pod.Object.Status.NominatedNodeName != ""
	}
	d.Unschedulable.Message = message(n, "", d.Unschedulable.Reasons, outcome)
	return d
}

// without is a list without one pod.
func without(pods []*placement.Pod, uid types.UID) []*placement.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p *placement.Pod) bool { return p.Object.UID == uid })
}
