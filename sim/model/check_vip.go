package model

import (
	"cmp"
	"iter"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// vipCheck looks at the rules of the connected nodes: whatever they lead to runs, or has stopped running a moment ago.
type vipCheck struct {
	changes *changes
	dead    map[string][]deadEnd // by namespace: where its rules lead in vain
	gone    map[string]absence
}

// deadEnd is an endpoint of a rule that does not answer.
type deadEnd struct {
	key      string // of the slice
	slice    *discoveryv1.EndpointSlice
	endpoint int
}

func newVIPCheck(m *Model) vipCheck {
	return vipCheck{changes: m.follow(), dead: map[string][]deadEnd{}}
}

// absence is since when an address answers no more, while the same leaders led.
type absence struct {
	since time.Duration
	terms [2]uint64 // of the meta shard and of the Service's
}

// vipBound is the lease's two seconds, a new meta leader's three, and what judging, planning, committing and delivering may take. The clock
// begins anew while a shard concerned has no leader, or no majority of voters that nothing ails, with a new leader, and while a node has
// announced that it will be back.
const vipBound = 7 * time.Second

func (c *vipCheck) look(m *Model) {
	for _, namespace := range c.changes.takeNamespaces() {
		if dead := m.deadEnds(namespace); len(dead) > 0 {
			c.dead[namespace] = dead
		} else {
			delete(c.dead, namespace)
		}
	}
	all := slices.SortedFunc(flatten(c.dead), func(a, b deadEnd) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.endpoint, b.endpoint))
	})
	before := c.gone
	c.gone = map[string]absence{}
	for _, end := range all {
		slice, endpoint := end.slice, &end.slice.Endpoints[end.endpoint]
		s := m.shardOf(slice.Namespace)
		if n := m.byName[ptr.Deref(endpoint.NodeName, "")]; !m.shards[0].well() || !s.well() || n != nil && n.patience > m.now {
			continue
		}
		terms := [2]uint64{m.shards[0].term, s.term}
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

// well tells whether a shard has a leader, and most of its voters are on machines and connections that nothing ails: then it decides in no
// time. A leader that waits for what was lost on its way has not heard yet: over a line that lost most, TCP tries again ever more seldom, and
// goes on waiting for a while when the line is good again.
func (s *shard) well() bool {
	if s.leads == nil || s.leads.node.ails() || s.leads.turns != nil && s.leads.turns.feed.last > s.model.now+checkEvery {
		return false
	}
	healthy := 0
	for _, id := range s.voterIDs {
		if r := s.replica(id); r != nil && r.node.active() && !r.node.ails() {
			healthy++
		}
	}
	return healthy > len(s.voterIDs)/2
}

// ails tells whether a machine is slow, or a fault of the network concerns it.
func (n *node) ails() bool {
	return n.slow > 1 || n.disk.slower > 0 || n.disk.full || n.model.network.troubled(n)
}

func flatten[K comparable, V any](m map[K][]V) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, list := range m {
			for _, v := range list {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// deadEnds are the endpoints of a namespace's rules that do not answer.
func (m *Model) deadEnds(namespace string) []deadEnd {
	var dead []deadEnd
	for key, slice := range m.vipIn[namespace] {
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			if ptr.Deref(endpoint.Conditions.Ready, true) && !m.answers(ptr.Deref(endpoint.NodeName, ""), endpoint.TargetRef.UID) {
				dead = append(dead, deadEnd{key, slice, i})
			}
		}
	}
	return dead
}

// answers tells whether a pod's processes run where packets reach them.
func (m *Model) answers(name string, uid types.UID) bool {
	n := m.byName[name]
	if n == nil || !n.up || n.model.network.isolated(n) {
		return false
	}
	c := n.pods[uid]
	return c != nil && c.running
}
