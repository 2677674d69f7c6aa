package model

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// vipCheck looks at the rules of the connected nodes: whatever they lead to runs, or has stopped running a moment ago.
type vipCheck struct {
	gone map[string]absence
}

// absence is since when an address answers no more, while the same leaders led.
type absence struct {
	since time.Duration
	terms [2]uint64 // of the meta shard and of the Service's
}

// vipBound is the lease's two seconds, a new meta leader's three, and what judging, planning, committing and delivering may take. While a shard concerned has no
// leader, and until a new meta leader has given every node its time, the clock begins anew.
const vipBound = 7 * time.Second

func (c *vipCheck) look(m *Model) {
	before := c.gone
	c.gone = map[string]absence{}
	for _, key := range slices.Sorted(maps.Keys(m.vip)) {
		slice := m.vip[key]
		s := m.shardOf(slice.Namespace)
		if m.shards[0].leader == nil || s.leader == nil {
			continue
		}
		terms := [2]uint64{m.shards[0].term, s.term}
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			if !ptr.Deref(endpoint.Conditions.Ready, true) || m.answers(ptr.Deref(endpoint.NodeName, ""), endpoint.TargetRef.UID) {
				continue
			}
			name := slice.Namespace + "/" + slice.Name + " " + endpoint.TargetRef.Name
			was, already := before[name]
			if !already || was.terms != terms {
				was = absence{since: m.now, terms: terms}
			}
			c.gone[name] = was
			if m.now-was.since > vipBound && m.now-was.since <= vipBound+checkEvery {
				m.violate(checkerVIP, "%s leads to %s on %s, which answers no more since %s", slice.Name, endpoint.TargetRef.Name, ptr.Deref(endpoint.NodeName, ""), was.since)
			}
		}
	}
}

// answers tells whether a pod's processes run where packets reach them.
func (m *Model) answers(name string, uid types.UID) bool {
	n := m.byName[name]
	if n == nil || !n.up || n.side != 0 {
		return false
	}
	c := n.pods[uid]
	return c != nil && c.running
}
