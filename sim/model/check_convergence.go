package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// convergenceCheck compares what users asked for with what runs and with where the rules lead.
type convergenceCheck struct {
	since time.Duration // when it became, and has stayed, as desired; -1 while it is not
	why   string        // it is not
}

func (c *convergenceCheck) look(m *Model) {
	if m.now < m.lastHeal {
		return
	}
	c.why = m.difference()
	switch {
	case c.why != "":
		if c.since >= 0 {
			m.note("not as desired any more: %s", c.why)
			m.emit(Event{Kind: EventAstray, Text: c.why})
		}
		c.since = -1
	case c.since < 0:
		c.since = m.now
		m.note("as desired, %s after the last fault", m.now-m.lastHeal)
		m.emit(Event{Kind: EventDesired})
	}
}

func (c *convergenceCheck) finish(m *Model) {
	if c.since >= 0 {
		m.outcome.Settled = c.since - m.lastHeal
	}
	switch {
	case m.cfg.ReadyWithin == 0:
	case c.since < 0:
		m.violate(checkerConvergence, "%s after the last fault: %s", m.now-m.lastHeal, c.why)
	case m.outcome.Settled > m.cfg.ReadyWithin:
		m.violate(checkerConvergence, "as desired %s after the last fault, not within %s", m.outcome.Settled, m.cfg.ReadyWithin)
	}
}

// difference says what is not as desired, or nothing.
func (m *Model) difference() string {
	for _, w := range m.cfg.Workloads {
		ready := map[types.UID]bool{}
		for _, n := range m.nodes {
			for _, uid := range slices.Sorted(maps.Keys(m.checks.bound[n.name])) {
				pod := m.checks.bound[n.name][uid]
				if pod.Namespace != w.Name {
					continue
				}
				if placement.Ready(pod) != m.answers(n.name, uid) {
					return fmt.Sprintf("%s/%s on %s is said to be ready: %t, and runs: %t", pod.Namespace, pod.Name, n.name, placement.Ready(pod), m.answers(n.name, uid))
				}
				if placement.Ready(pod) && pod.DeletionTimestamp == nil {
					ready[uid] = true
				}
			}
		}
		if len(ready) != w.Replicas {
			return fmt.Sprintf("%s has %d of %d pods ready", w.Name, len(ready), w.Replicas)
		}
		if why := m.wrongRules(w.Name, ready); why != "" {
			return why
		}
	}
	return ""
}

// wrongRules compares the rules of a Service with the pods that are ready.
func (m *Model) wrongRules(namespace string, ready map[types.UID]bool) string {
	led := map[types.UID]bool{}
	for _, key := range slices.Sorted(maps.Keys(m.vip)) {
		if m.vip[key].Namespace != namespace {
			continue
		}
		for i := range m.vip[key].Endpoints {
			endpoint := &m.vip[key].Endpoints[i]
			if ptr.Deref(endpoint.Conditions.Ready, true) {
				led[endpoint.TargetRef.UID] = true
			}
		}
	}
	if !maps.Equal(led, ready) {
		return fmt.Sprintf("the rules of %s lead to %d pods, %d are ready, and they are not the same", namespace, len(led), len(ready))
	}
	return ""
}
