package schedule

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// refusals remember why each slot does not suit a class and whom the class could displace there.
// After a step of the batch only the slots that it bears on are asked again: the one it happened
// on, or all of them if the class has constraints that look beyond a node.
type refusals struct {
	objections []objection
	candidates []candidate
	stale      []int32 // slots to be asked again; all of them if objections is nil
	reasons    map[string]int
	budgets    int // epoch of the budgets that candidates were found with
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
		r.objections, r.candidates, r.reasons = make([]objection, n), make([]candidate, n), map[string]int{}
		for slot := range n {
			r.objections[slot] = c.objectionAt(slot)
			r.count(slot, 1)
		}
		r.stale = nil
		return r
	}
	for _, slot := range r.stale {
		r.count(int(slot), -1)
		r.objections[slot] = c.objectionAt(int(slot))
		r.candidates[slot] = candidate{}
		r.count(int(slot), 1)
	}
	r.stale = r.stale[:0]
	return r
}

func (r *refusals) count(slot, by int) {
	for _, reason := range r.objections[slot].reasons {
		if r.reasons[reason] += by; r.reasons[reason] == 0 {
			delete(r.reasons, reason)
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
	own, nominated := b.nominee[pod.Object.UID]
	if nominated {
		r.count(own, -1)
		r.objections[own] = objection{}
		if c.candidate(own) {
			r.objections[own] = c.judge(own, pod.Object.UID)
		} else {
			r.objections[own] = notNamed
		}
		r.count(own, 1)
		r.candidates[own] = candidate{}
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
	d.Unschedulable.Message = message(n, "", r.reasons, outcome)
	return d
}

// pending are the slots worth a look for victims, in order.
func (r *refusals) pending() func(func(int) bool) {
	return func(yield func(int) bool) {
		for slot := range r.objections {
			if o := &r.objections[slot]; o.reasons != nil && !o.hopeless && !yield(slot) {
				return
			}
		}
	}
}

// without is a list without one pod.
func without(pods []*placement.Pod, uid types.UID) []*placement.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p *placement.Pod) bool { return p.Object.UID == uid })
}
