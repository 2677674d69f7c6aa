package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"shoal/placement"
)

// objection is why one slot does not suit the class: the reasons of the first filter that fails,
// in upstream's order; hopeless ones would stand on an empty node too.
func (c *class) objection(slot int, minima []int64) (reasons []string, hopeless bool) {
	if verdict := c.static[slot]; verdict != fitsSoFar {
		return []string{verdictReasons[verdict]}, true
	}
	n := &c.batch.nodes[slot]
	if n.portTaken(c.pod.Ports) {
		return []string{reasonPorts}, false
	}
	if reasons, hopeless := n.shortage(&c.pod.Requests); len(reasons) > 0 {
		return reasons, hopeless
	}
	if reason, hopeless := c.spreadReason(slot, minima); reason != "" {
		return []string{reason}, hopeless
	}
	if reason := c.affinity.reason(slot); reason != "" {
		return []string{reason}, reason == reasonPodAffinity
	}
	return nil, false
}

// diagnose explains why no node fits.
func (c *class) diagnose() *Unschedulable {
	if c.failure != nil {
		return c.failure
	}
	u := &Unschedulable{Nodes: len(c.batch.nodes), Reasons: map[string]int{}}
	minima := c.spreadMinima()
	preemption := map[string]int{}
	for slot := range c.batch.nodes {
		reasons, hopeless := c.objection(slot, minima)
		for _, reason := range reasons {
			u.Reasons[reason]++
		}
		if hopeless {
			preemption[reasonNotHelpful]++
		} else if !c.batch.hasVictims(slot, c.pod) {
			preemption[reasonNoVictims]++
		}
	}
	u.Message = message(u.Nodes, "", u.Reasons, c.preemption(preemption))
	c.failure = u
	return u
}

// preemption says, in upstream's words, why nobody is preempted for the pod; "" if somebody
// might be.
func (c *class) preemption(reasons map[string]int) string {
	if p := c.pod.Object.Spec.PreemptionPolicy; p != nil && *p == corev1.PreemptNever {
		return messageNever
	}
	nodes := 0
	for _, n := range reasons {
		nodes += n
	}
	if nodes == 0 || nodes < len(c.batch.nodes) {
		return ""
	}
	return message(nodes, "", reasons, "")
}

// hasVictims tells whether a slot has pods of lower priority, which could make room.
func (b *batch) hasVictims(slot int, pod *placement.Pod) bool {
	found := false
	b.nodes[slot].EachPod(func(p *placement.Pod) {
		found = found || corev1helpers.PodPriority(p.Object) < corev1helpers.PodPriority(pod.Object)
	})
	return found
}

// message is the text of a FailedScheduling event: a refusal by all, or a histogram of reasons,
// sorted by its text as upstream sorts it, and what preemption would do.
func message(nodes int, refusal string, reasons map[string]int, preemption string) string {
	if nodes == 0 && refusal == "" {
		return messageNoNodes
	}
	text := fmt.Sprintf("0/%d nodes are available:", nodes)
	if refusal != "" {
		text += " " + refusal + "."
	}
	if len(reasons) > 0 {
		histogram := make([]string, 0, len(reasons))
		for reason, count := range reasons {
			histogram = append(histogram, fmt.Sprintf("%d %s", count, reason))
		}
		slices.Sort(histogram)
		text += " " + strings.Join(histogram, ", ") + "."
	}
	if preemption != "" {
		text += " preemption: " + preemption
	}
	return text
}

// explain lists every node's answer, best first.
func (c *class) explain() []NodeExplanation {
	answers := make([]NodeExplanation, 0, len(c.batch.nodes))
	if c.refusal != "" {
		for slot := range c.batch.nodes {
			answers = append(answers, NodeExplanation{Node: c.batch.nodes[slot].Name, Reasons: []string{c.refusal}})
		}
	} else {
		answers = c.scoreAll(answers)
	}
	slices.SortFunc(answers, func(a, b NodeExplanation) int {
		return cmp.Or(cmp.Compare(min(len(a.Reasons), 1), min(len(b.Reasons), 1)), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Node, b.Node))
	})
	return answers
}

func (c *class) scoreAll(answers []NodeExplanation) []NodeExplanation {
	c.findFeasible()
	limits := c.rawScores()
	minima := c.spreadMinima()
	next := 0
	for slot := range c.batch.nodes {
		n := &c.batch.nodes[slot]
		e := NodeExplanation{Node: n.Name}
		if next == len(c.feasible) || int(c.feasible[next]) != slot {
			e.Reasons, _ = c.objection(slot, minima)
			if c.static[slot] == isTainted {
				e.Reasons = append(e.Reasons, taintDetail(c.pod.Object, n.Object))
			}
			answers = append(answers, e)
			continue
		}
		r := &c.raw[next]
		next++
		e.Scores = map[string]int64{
			"TaintToleration":                 limits.taintScore(r) * weightTaint,
			"NodeAffinity":                    limits.affinityScore(r) * weightAffinity,
			"PodTopologySpread":               limits.spreadScore(r) * weightSpread,
			"InterPodAffinity":                limits.podsScore(r) * weightPods,
			"NodeResourcesFit":                leastAllocated(n, c.pod) * weightFit,
			"NodeResourcesBalancedAllocation": balanced(n, c.pod) * weightBalanced,
			"ImageLocality":                   0,
		}
		if c.fixed.image != nil {
			e.Scores["ImageLocality"] = c.fixed.image[slot]
		}
		e.Total = c.total(slot, r, &limits)
		answers = append(answers, e)
	}
	return answers
}

// taintDetail names the first taint that the pod does not tolerate.
func taintDetail(pod *corev1.Pod, n *corev1.Node) string {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if repels(t) && !tolerates(pod, &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{*t}}}) {
			return "taint " + t.ToString()
		}
	}
	return ""
}
