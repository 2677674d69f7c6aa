package schedule

import (
	"slices"

	"shoal/placement"
)

// objection is why a slot does not suit: the reasons of the first filter that fails, nil if none
// does. Hopeless ones would stand on an empty node too.
type objection struct {
	reasons  []string
	hopeless bool
}

// trial asks what if: a slot with some pods more or less than there are.
type trial struct {
	class     *class
	slot      int
	requested placement.Resources
	owned     bool // requested.Scalar is the trial's own
	added     []*placement.Pod
	removed   []*placement.Pod
	spread    []int64 // per hard constraint: change of the matching pods in the slot's domain
	affinity  affinityShift
	claimsOff int64 // users of the pod's ReadWriteOncePod claims that were removed, less those added
}

func (c *class) newTrial(slot int) *trial {
	return &trial{class: c, slot: slot, requested: c.batch.nodes[slot].requested}
}

// add puts a pod on the slot: one that was removed before, or a new one.
func (t *trial) add(p *placement.Pod) {
	if i := slices.Index(t.removed, p); i >= 0 {
		last := len(t.removed) - 1
		t.removed[i] = t.removed[last]
		t.removed = t.removed[:last]
	} else {
		t.added = append(t.added, p)
	}
	t.shift(p, 1)
}

// remove takes a pod of the slot away.
func (t *trial) remove(p *placement.Pod) {
	t.removed = append(t.removed, p)
	t.shift(p, -1)
}

func (t *trial) shift(p *placement.Pod, by int64) {
	c := t.class
	if !t.owned && len(p.Requests.Scalar) > 0 {
		t.requested = t.requested.Plus(placement.Resources{})
		t.owned = true
	}
	if by > 0 {
		t.requested.Add(p.Requests)
	} else {
		t.requested.Sub(p.Requests)
	}
	for i := range c.hard {
		if t.spread == nil {
			t.spread = make([]int64, len(c.hard))
		}
		if c.hard[i].counts(c.pod, p.Object, t.slot) {
			t.spread[i] += by
		}
	}
	if c.pod.Affinity != nil || p.Affinity != nil {
		t.affinity.shift(c, p, t.slot, by)
	}
	if c.volumes != nil {
		t.claimsOff -= by * c.volumes.soleUses(p.Object)
	}
}

// judge runs the filters.
func (t *trial) judge() objection {
	c, n := t.class, &t.class.batch.nodes[t.slot]
	if v := c.earlyVerdict(t.slot); v != fitsSoFar {
		return objection{[]string{verdictReasons[v]}, true}
	}
	if t.portTaken(n) {
		return objection{[]string{reasonPorts}, false}
	}
	if reasons, hopeless := shortage(&c.pod.Requests, &t.requested, &n.Allocatable); len(reasons) > 0 {
		return objection{reasons, hopeless}
	}
	if why := n.Closed(); why != "" {
		return objection{[]string{why}, true}
	}
	if c.perNode() {
		if o := t.judgeVolumes(n); o.reasons != nil {
			return o
		}
	}
	if reason, hopeless := c.spreadReason(t.slot, t.spread); reason != "" {
		return objection{[]string{reason}, hopeless}
	}
	if reason := c.affinity.reason(t.slot, &t.affinity); reason != "" {
		return objection{[]string{reason}, reason == reasonPodAffinity}
	}
	if v := c.lateVerdict(t.slot); v != fitsSoFar {
		return objection{[]string{verdictReasons[v]}, true}
	}
	return objection{}
}

func (t *trial) portTaken(n *node) bool {
	if len(t.class.pod.Ports) == 0 {
		return false
	}
	for _, p := range t.added {
		for _, port := range p.Ports {
			if slices.ContainsFunc(t.class.pod.Ports, port.Conflicts) {
				return true
			}
		}
	}
	if len(t.removed) == 0 {
		return n.portTaken(t.class.pod.Ports)
	}
	taken := n.unknownPortTaken(t.class.pod.Ports)
	t.eachPod(func(p *placement.Pod) {
		for _, port := range p.Ports {
			taken = taken || slices.ContainsFunc(t.class.pod.Ports, port.Conflicts)
		}
	})
	return taken
}

// eachPod calls f for the pods that are on the slot in the trial.
func (t *trial) eachPod(f func(*placement.Pod)) {
	t.class.batch.eachOn(t.slot, func(p *placement.Pod) {
		if !slices.Contains(t.removed, p) {
			f(p)
		}
	})
	for _, p := range t.added {
		f(p)
	}
}
