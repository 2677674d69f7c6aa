package model

import (
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// brakeCheck counts, from the stored nodes alone, how much of each zone looks lost, and watches evictions: while it is most of a zone of
// at least three nodes, none may happen there (D8). It allows for decisions that were taken before the last loss was known.
type brakeCheck struct {
	since map[string]time.Duration        // by zone: when the brake should have come on
	nodes map[string]int                  // by zone: those that are stored
	lost  map[string]map[string]time.Time // by zone and node: since when it looks lost
	known map[string]bool                 // by node: it is stored
}

func newBrakeCheck() brakeCheck {
	return brakeCheck{
		since: map[string]time.Duration{}, nodes: map[string]int{}, lost: map[string]map[string]time.Time{}, known: map[string]bool{},
	}
}

// brakeLag is how long decisions may be under way.
const brakeLag = 500 * time.Millisecond

// The brake as ARCHITECTURE.md promises it, stated here again so that a changed default is noticed.
const (
	brakeNodes = 3
	brakeShare = 0.55
)

// look follows a write of a node's object.
func (c *brakeCheck) look(m *Model, name string) {
	n := m.byName[name]
	if n == nil {
		return
	}
	object, stored := m.shards[0].objects[kinds[0].prefix+name].(*corev1.Node)
	switch {
	case stored && !c.known[name]:
		c.nodes[n.zone]++
	case !stored && c.known[name]:
		c.nodes[n.zone]--
	}
	c.known[name] = stored
	delete(c.lost[n.zone], name)
	if stored {
		if ready := placement.NodeCondition(object, corev1.NodeReady); ready != nil && ready.Status == corev1.ConditionUnknown {
			if c.lost[n.zone] == nil {
				c.lost[n.zone] = map[string]time.Time{}
			}
			c.lost[n.zone][name] = ready.LastTransitionTime.Time
		}
	}
	c.judge(m, n.zone)
}

// judge tells whether most of a zone looks lost.
func (c *brakeCheck) judge(m *Model, zone string) {
	times := slices.SortedFunc(maps.Values(c.lost[zone]), time.Time.Compare)
	together, first := 0, 0
	for i := range times {
		for times[i].Sub(times[first]) > time.Minute {
			first++
		}
		together = max(together, i-first+1)
	}
	if together < brakeNodes || float64(together) <= brakeShare*float64(c.nodes[zone]) {
		delete(c.since, zone)
	} else if _, already := c.since[zone]; !already {
		c.since[zone] = m.now
	}
}

// deleted watches forced deletions, which is what an eviction from a lost node is.
func (c *brakeCheck) deleted(m *Model, change placement.Change, pod *corev1.Pod) {
	if change.Verb != placement.Delete || change.GracePeriodSeconds == nil || pod == nil || len(change.Events) == 0 {
		return
	}
	if !strings.Contains(change.Events[0].Reason, "Eviction") {
		return
	}
	m.outcome.Evictions++
	n := m.byName[pod.Spec.NodeName]
	m.note("%s/%s is evicted from %s", pod.Namespace, pod.Name, pod.Spec.NodeName)
	m.emit(Event{Kind: EventEvicted, Pod: pod.Namespace + "/" + pod.Name, Node: pod.Spec.NodeName})
	if at, braked := c.since[n.zone]; braked && m.now-at > brakeLag {
		m.violate(checkerBrake, "%s/%s is evicted from %s although most of zone %s looks lost since %s", pod.Namespace, pod.Name, n.name, n.zone, at)
	}
}
