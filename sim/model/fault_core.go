package model

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Liveness after safety, as TigerBeetle's simulator tells them apart (vopr.zig, transition_to_liveness_mode): any faults may come before, on any
// machines; then a core is healed, everybody else stays as badly off as they are and is out of reach for good, and the core has to come to
// rest. Where a run instead heals everything, whoever recovers last may hide that those who were well could not go on without.

// healCore ends what ails the core, cuts everybody else off, and lets no other fault happen any more.
func (m *Model) healCore(core []*node) {
	m.core = map[*node]bool{}
	for _, n := range core {
		m.core[n] = true
	}
	m.network.heal(m.nodes)
	rest := &link{kind: Cut, a: map[*node]bool{}}
	for _, n := range m.nodes {
		n.stale = true
		n.changed()
		if n.up {
			n.watch()
		}
		if !m.core[n] && !n.left {
			rest.a[n] = true
		}
	}
	if names := befallen(slices.SortedFunc(maps.Keys(rest.a), byIndex)); len(names) > 0 {
		m.network.links = append(m.network.links, rest)
		m.emit(Event{Kind: EventFault, Fault: Fault{At: m.now, Kind: Cut, Target: strings.Join(names, ",")}, Nodes: names})
	}
	for _, n := range core {
		for _, kind := range []FaultKind{Restart, Thaw, Mend, SetClock} {
			n.suffer(Fault{Kind: kind})
		}
		if n.draining && !n.leaving {
			n.drain(false)
		}
	}
	m.load++
	m.lastHeal = m.now
}

// beyond tells whether a node is out of the core, once there is one: nothing is expected of it any more.
func (m *Model) beyond(n *node) bool { return m.core != nil && !m.core[n] }

// quorum draws as few machines as can go on alone: they hold most voters of every shard, have room for all pods and some to spare, and so few
// are missing from each zone that the brake on evictions does not hold.
func (m *Model) quorum() []*node {
	core := slices.DeleteFunc(slices.Clone(m.nodes), func(n *node) bool { return n.left || n.leaving })
	out := slices.Clone(core)
	m.chance.Shuffle(len(out), func(i, k int) { out[i], out[k] = out[k], out[i] })
	for _, n := range out {
		less := slices.DeleteFunc(slices.Clone(core), func(other *node) bool { return other == n })
		if m.canGoOn(less) {
			core = less
		}
	}
	return core
}

// canGoOn tells whether nodes are enough, see quorum.
func (m *Model) canGoOn(core []*node) bool {
	in, zones, missing := map[*node]bool{}, map[string]int{}, map[string]int{}
	for _, n := range core {
		in[n] = true
	}
	for _, n := range m.nodes {
		if n.left {
			continue
		}
		if zones[n.zone]++; !in[n] {
			missing[n.zone]++
		}
	}
	for zone, count := range missing {
		if count >= m.repair.BrakeNodes && float64(count) > m.repair.BrakeShare*float64(zones[zone]) {
			return false
		}
	}
	for _, s := range m.shards {
		voters := 0
		for _, id := range s.voterIDs {
			if r := s.replica(id); r != nil && in[r.node] {
				voters++
			}
		}
		if voters <= len(s.voterIDs)/2 {
			return false
		}
	}
	return m.hasRoom(len(core))
}

// hasRoom tells whether so many nodes have room for all pods, with a fifth to spare, because pods come in pieces.
func (m *Model) hasRoom(nodes int) bool {
	asked := map[corev1.ResourceName]float64{}
	for _, w := range m.cfg.Workloads {
		asked[corev1.ResourcePods] += float64(w.Replicas)
		for name, q := range w.Requests {
			asked[name] += q.AsApproximateFloat64() * float64(w.Replicas)
		}
	}
	for name, sum := range asked {
		if have := m.cfg.Allocatable[name]; sum > 0.8*have.AsApproximateFloat64()*float64(nodes) {
			return false
		}
	}
	return true
}
