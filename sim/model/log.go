package model

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/consensus/store"
	"shoal/placement"
)

var errNoLeader = errors.New("the shard has no leader that can be reached")

// commit proposes changes in the name of a node, and tells everybody who follows the shard what became of it.
func (m *Model) commit(from *node, s *shard, changes []placement.Change) error {
	if s.leader == nil || !m.reaches(from, s.leader) || !m.quorum(s, s.leader) {
		return errNoLeader
	}
	before := make([]placement.Object, len(changes))
	for i, c := range changes {
		before[i] = s.objects[keyOf(c.Object)]
	}
	events, err := s.commit(changes, m.time())
	if err != nil {
		return err
	}
	m.checks.committed(s, changes, before)
	m.observe(s, changes, before)
	m.publish(s, events)
	return nil
}

// publish delivers what a shard has committed: to its leader's view at once, which is what leader.await is for, to other leaders and to
// the nodes it concerns after a moment.
func (m *Model) publish(s *shard, events []written) {
	touched := map[*node]bool{}
	for _, event := range events {
		before, now := event.before, event.now
		m.note("shard %d %s %s", s.number, verb(event), event.Key)
		m.tellLeaders(s, before, now, event.Delete)
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
		m.tellNode(n, s)
	}
}

// tellLeaders delivers a change to the leader of its shard; one of the meta shard concerns the others as well.
func (m *Model) tellLeaders(s *shard, before, now placement.Object, gone bool) {
	if s.turns != nil {
		s.turns.learn(before, now, gone)
	}
	if s.number != 0 {
		return
	}
	for _, other := range m.shards {
		if other.turns != nil {
			m.tellLeader(other, s, before, now, gone)
		}
	}
	if s.meta != nil {
		s.meta.learn(before, now, gone)
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
func (m *Model) tellLeader(to, from *shard, before, now placement.Object, gone bool) {
	turns := to.turns
	if !m.reaches(from.leader, turns.node) {
		turns.stale = true
		return
	}
	// One delay for all changes keeps them in order.
	turns.node.do(feedDelay, "feed", func() {
		if to.turns == turns {
			turns.learn(before, now, gone)
		}
	})
}

// feedDelay is what a committed change takes to another peer's view.
const feedDelay = 3 * time.Millisecond

// tellNode lets a node look again at what a shard says of it. One that cannot be told looks when it is back.
func (m *Model) tellNode(n *node, s *shard) {
	if !m.reaches(s.leader, n) {
		n.stale = true
		return
	}
	n.do(m.between(time.Millisecond, 10*time.Millisecond), "tell", func() { n.look(s) })
}

// reaches tells whether messages pass between two peers.
func (m *Model) reaches(a, b *node) bool {
	return a == b && a.up || a.up && b.up && !a.frozen && !b.frozen && a.side == b.side
}

// quorum tells whether a peer reaches most voters of a shard.
func (m *Model) quorum(s *shard, from *node) bool {
	if from.frozen {
		return false
	}
	reached := 0
	for _, voter := range s.voters {
		if m.reaches(from, voter) && !voter.frozen {
			reached++
		}
	}
	return reached > len(s.voters)/2
}

// review looks at every shard after something has changed between peers, and starts the elections that follow.
func (m *Model) review() {
	for _, s := range m.shards {
		if s.leader != nil && s.leader.up && m.quorum(s, s.leader) {
			continue
		}
		if s.leader != nil {
			m.emit(Event{Kind: EventLeaderless, Shard: s.number, Node: s.leader.name})
		}
		s.leader, s.turns, s.meta = nil, nil, nil
		if !s.voting && slices.ContainsFunc(s.voters, func(n *node) bool { return n.up && m.quorum(s, n) }) {
			s.voting = true
			m.after(m.between(400*time.Millisecond, 1600*time.Millisecond), "election", func() { m.elect(s) })
		}
	}
}

// elect makes one of the voters that reach most others the leader.
func (m *Model) elect(s *shard) {
	s.voting = false
	var able []*node
	for _, n := range s.voters {
		if n.up && m.quorum(s, n) {
			able = append(able, n)
		}
	}
	if s.leader != nil || len(able) == 0 {
		return
	}
	m.lead(s, able[m.chance.IntN(len(able))])
	m.outcome.Elections++
}

// lead starts a leader's work. It knows what its replica knows, which is everything committed.
func (m *Model) lead(s *shard, n *node) {
	s.leader = n
	s.term++
	m.note("shard %d is led by %s", s.number, n.name)
	m.emit(Event{Kind: EventLeads, Shard: s.number, Node: n.name})
	if s.number == 0 {
		s.meta = newMeta(m, n)
		return
	}
	s.turns = newLeader(m, s, n)
	s.turns.wake()
}
