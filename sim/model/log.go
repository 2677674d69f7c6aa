package model

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/placement"
)

// committed tells the checkers and everybody who follows a shard of a transaction. r is the replica that has applied it first.
func (m *Model) committed(r *replica, changes []placement.Change, events []store.Event) {
	s := r.shard
	before := make([]placement.Object, len(changes))
	for i, c := range changes {
		before[i] = s.objects[keyOf(c.Object)]
	}
	for _, event := range events {
		if strings.HasPrefix(event.Key, shardmap.Prefix) {
			m.assigned(event)
		}
	}
	all := s.take(events)
	m.checks.committed(s, changes, before)
	m.observe(s, changes, before)
	m.publish(r, all)
}

// publish delivers what a shard has committed: to its leader's view at once, which is what leader.await is for, to other leaders and to
// the nodes it concerns after a moment.
func (m *Model) publish(r *replica, events []written) {
	s := r.shard
	touched := map[*node]bool{}
	for _, event := range events {
		before, now := event.before, event.now
		m.note("shard %d %s %s", s.number, verb(event), event.Key)
		m.tellLeaders(r, before, now, event.Delete)
		for _, version := range []placement.Object{before, now} {
			switch o := version.(type) {
			case *corev1.Pod:
				m.touch(touched, o.Spec.NodeName)
			case *corev1.Node:
				m.touch(touched, o.Name)
			}
		}
		if slice, ok := cmp.Or(now, before).(*discoveryv1.EndpointSlice); ok {
			namespace := slice.Namespace
			if event.Delete {
				slice = nil
			}
			m.after(m.between(time.Millisecond, 20*time.Millisecond), "rules", func() { m.setRules(event.Key, namespace, slice) })
		}
	}
	for _, n := range slices.SortedFunc(maps.Keys(touched), byIndex) {
		m.tellNode(n, r)
	}
}

// tellLeaders delivers a change to the leader of its shard; one of the meta shard concerns the others as well.
func (m *Model) tellLeaders(r *replica, before, now placement.Object, gone bool) {
	if r.turns != nil {
		r.turns.learn(before, now, gone)
	}
	if r.shard.number != 0 {
		return
	}
	for _, other := range m.shards {
		for _, leader := range other.replicas {
			if leader.turns != nil {
				m.tellLeader(leader.turns, r.node, before, now, gone)
			}
		}
	}
	if r.meta != nil {
		r.meta.learn(before, now, gone)
	}
}

func verb(event written) string {
	switch {
	case event.Delete:
		return "deletes"
	case event.PrevMod == 0:
		return "creates"
	}
	return "writes"
}

func (m *Model) touch(touched map[*node]bool, name string) {
	if n := m.byName[name]; n != nil {
		touched[n] = true
	}
}

// setRules brings the VIP rules of every connected node up to date. Those that are cut off keep what they have, and nobody asks them.
func (m *Model) setRules(key, namespace string, slice *discoveryv1.EndpointSlice) {
	if slice == nil {
		delete(m.vip, key)
		delete(m.vipIn[namespace], key)
	} else if have := m.vip[key]; have == nil || revision(have) < revision(slice) {
		m.vip[key] = slice
		if m.vipIn[namespace] == nil {
			m.vipIn[namespace] = map[string]*discoveryv1.EndpointSlice{}
		}
		m.vipIn[namespace][key] = slice
	}
	m.changedRules(namespace)
}

func revision(o placement.Object) store.Revision {
	at, err := store.ParseRevision(o.GetResourceVersion())
	if err != nil {
		panic(err)
	}
	return at
}

// tellLeader delivers a change of the meta shard to the leader of another one. A leader that cannot be told reads everything anew later.
func (m *Model) tellLeader(turns *leader, from *node, before, now placement.Object, gone bool) {
	turns.feed.from, turns.feed.to = from, turns.node // whoever tells it goes on where the other one has stopped
	state := turns.state
	if turns.stale {
		return
	}
	if !turns.feed.send(m, "feed", feedDelay, func() {
		if turns.leads() && turns.state == state {
			turns.learn(before, now, gone)
		}
	}) {
		turns.miss()
	}
}

// feedDelay is what a committed change takes to another peer's view.
const feedDelay = 3 * time.Millisecond

// tellNode lets a node look again at what a shard says of it. One that cannot be told looks when it is back.
func (m *Model) tellNode(n *node, r *replica) {
	if !m.reaches(r.node, n) {
		n.stale = true
		return
	}
	n.do(m.between(time.Millisecond, 10*time.Millisecond), "tell", func() { n.look(r.shard) })
}
