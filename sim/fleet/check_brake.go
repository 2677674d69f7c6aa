package fleet

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The brake as ARCHITECTURE.md promises it, stated here again so that a changed default is noticed.
const (
	brakeNodes  = 3
	brakeShare  = 0.55
	brakeWithin = time.Minute
	// brakeLag is how long decisions may be under way that were taken before the last loss was known.
	brakeLag = 2 * time.Second
)

// brakeCheck holds that nobody is evicted from a zone of which most looks lost (D8). Pods of a fleet are deleted by nobody else.
type brakeCheck struct {
	since map[string]time.Time // by zone: since when the brake must be on
	on    map[types.UID]string // the zones of the pods that were there, undisturbed, on lost nodes
}

func (c *brakeCheck) look(r *run, p picture) {
	held := c.held(p)
	zones := map[string]string{}
	for _, node := range p.nodes {
		if !lostSince(&node).IsZero() {
			zones[node.Name] = node.Labels[corev1.LabelTopologyZone]
		}
	}
	on := map[types.UID]string{}
	for _, pod := range p.pods {
		if zone, lost := zones[pod.Spec.NodeName]; lost && pod.DeletionTimestamp == nil {
			on[pod.UID] = zone
		}
	}
	back := map[types.UID]bool{} // of nodes that are not lost any more
	for _, pod := range p.pods {
		if _, lost := zones[pod.Spec.NodeName]; !lost {
			back[pod.UID] = true
		}
	}
	for uid, zone := range c.on {
		_, still := on[uid]
		if since, braked := held[zone]; braked && !still && !back[uid] && p.at.Sub(since) > brakeLag {
			r.blame("brake", "pod %s was evicted although most of zone %q has looked lost since %s", uid, zone, since.Sub(r.begun))
		}
	}
	c.on, c.since = on, held
}

// held are the zones whose brake must be on, and since when.
func (c *brakeCheck) held(p picture) map[string]time.Time {
	all, lost := map[string]int{}, map[string][]time.Time{}
	for _, node := range p.nodes {
		zone := node.Labels[corev1.LabelTopologyZone]
		all[zone]++
		if at := lostSince(&node); !at.IsZero() {
			lost[zone] = append(lost[zone], at)
		}
	}
	held := map[string]time.Time{}
	for zone, times := range lost {
		slices.SortFunc(times, time.Time.Compare)
		together, first := 0, 0
		for i := range times {
			for times[i].Sub(times[first]) > brakeWithin {
				first++
			}
			together = max(together, i-first+1)
		}
		if together < brakeNodes || float64(together) <= brakeShare*float64(all[zone]) {
			continue
		}
		held[zone] = p.at
		if since, already := c.since[zone]; already {
			held[zone] = since
		}
	}
	return held
}

// lostSince is when a node began to look lost, zero if it does not.
func lostSince(node *corev1.Node) time.Time {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionUnknown {
			return condition.LastTransitionTime.Time
		}
	}
	return time.Time{}
}
