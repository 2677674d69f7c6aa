package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// message is the text of a FailedScheduling event: a refusal by all, or a histogram of reasons,
// sorted by its text as upstream sorts it, and what preemption would do.
func message(nodes int, refusal string, reasons map[string]int, preemption string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "0/%d nodes are available:", nodes)
	if refusal != "" {
		text.WriteString(" " + refusal + ".")
	}
	if len(reasons) > 0 {
		histogram := make([]string, 0, len(reasons))
		for reason, count := range reasons {
			histogram = append(histogram, fmt.Sprintf("%d %s", count, reason))
		}
		slices.Sort(histogram)
		text.WriteString(" " + strings.Join(histogram, ", ") + ".")
	}
	if preemption != "" {
		text.WriteString(" preemption: " + preemption)
	}
	return text.String()
}

// explain lists every node's answer, best first.
func (c *class) explain(pod *placement.Pod) []NodeExplanation {
	answers := make([]NodeExplanation, 0, len(c.batch.nodes))
	if c.refusal != "" {
		for slot := range c.batch.nodes {
			answers = append(answers, NodeExplanation{Node: c.batch.nodes[slot].Name, Reasons: []string{c.refusal}})
		}
	} else {
		answers = c.scoreAll(pod, answers)
	}
	slices.SortFunc(answers, func(a, b NodeExplanation) int {
		return cmp.Or(cmp.Compare(min(len(a.Reasons), 1), min(len(b.Reasons), 1)), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Node, b.Node))
	})
	return answers
}

func (c *class) scoreAll(pod *placement.Pod, answers []NodeExplanation) []NodeExplanation {
	c.feasible = c.feasible[:0]
	for slot := range c.batch.nodes {
		o := notNamed
		if c.candidate(slot) {
			o = c.judge(slot, pod.Object.UID)
		}
		if o.reasons == nil {
			c.feasible = append(c.feasible, int32(slot))
			continue
		}
		n := &c.batch.nodes[slot]
		e := NodeExplanation{Node: n.Name, Reasons: slices.Clone(o.reasons)}
		if o.reasons[0] == reasonTainted {
			e.Reasons = append(e.Reasons, taintDetail(c.pod.Object, n.Object))
		}
		answers = append(answers, e)
	}
	if len(c.feasible) == 0 {
		c.nameVictims(pod, answers)
		return answers
	}
	if c.only != nil {
		c.scoreNamed()
	}
	limits := c.rawScores()
	for i, slot := range c.feasible {
		n, r := &c.batch.nodes[slot], &c.raw[i]
		e := NodeExplanation{Node: n.Name, Total: c.total(int(slot), r, &limits), Scores: map[string]int64{
			"TaintToleration":                 limits.taintScore(r) * weightTaint,
			"NodeAffinity":                    limits.affinityScore(r) * weightAffinity,
			"PodTopologySpread":               limits.spreadScore(r) * weightSpread,
			"InterPodAffinity":                limits.podsScore(r) * weightPods,
			"NodeResourcesFit":                leastAllocated(n, c.pod) * weightFit,
			"NodeResourcesBalancedAllocation": balanced(n, c.pod) * weightBalanced,
			"ImageLocality":                   0,
			"VolumeBinding":                   0,
		}}
		if c.preferences.image != nil {
			e.Scores["ImageLocality"] = c.preferences.image[slot] * weightImage
		}
		if c.volumes != nil {
			e.Scores["VolumeBinding"] = c.batch.volumeScore(c.volumes, n.Object) * weightVolumes
		}
		answers = append(answers, e)
	}
	return answers
}

// nameVictims says of each node who would have to leave it.
func (c *class) nameVictims(pod *placement.Pod, answers []NodeExplanation) {
	if c.never() {
		return
	}
	for i := range answers {
		n, _ := c.batch.view.Node(answers[i].Node)
		if o := c.objectionAt(n.Slot()); o.hopeless {
			continue
		}
		k := c.findVictims(n.Slot(), pod)
		for _, victim := range k.victims {
			answers[i].Victims = append(answers[i].Victims, victim.Key().String())
		}
		answers[i].Violations = k.violations
	}
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
