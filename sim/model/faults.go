package model

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AllFaults are the named faults and those that are drawn from the seed, in order of time.
func (c Config) AllFaults() []Fault {
	faults := append(slices.Clone(c.Faults), c.Random.Draw(c.Seed, c.Nodes)...)
	slices.SortStableFunc(faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return faults
}

// planFaults puts every fault into the queue.
func (m *Model) planFaults() error {
	if s := m.cfg.Random; s.Faults > 0 && s.Until <= s.From {
		return fmt.Errorf("random faults between %s and %s leave no time", s.From, s.Until)
	}
	for _, f := range m.cfg.AllFaults() {
		if err := f.Check(m.cfg.Nodes, m.cfg.Zones, m.cfg.Shards); err != nil {
			return fmt.Errorf("at %s: %w", f.At, err)
		}
		m.schedule(f)
	}
	return nil
}

func (m *Model) schedule(f Fault) {
	m.lastHeal = max(m.lastHeal, f.At+f.For)
	m.after(f.At-m.now, "fault", func() { m.inflict(f) })
}

// targets are the nodes that a fault's words mean now. A node that has left is nobody's target.
func (m *Model) targets(text string) []*node {
	var all []*node
	kind, rest, _ := strings.Cut(text, " ")
	number, _ := strconv.Atoi(rest)
	switch {
	case text == "quorum":
		all = m.quorum()
	case text == "all":
		all = slices.Clone(m.nodes)
	case kind == "zone":
		all = slices.DeleteFunc(slices.Clone(m.nodes), func(n *node) bool { return n.zone != rest })
	case kind == "shard":
		for _, r := range m.shards[number].replicas {
			if !r.gone && slices.Contains(m.shards[number].voterIDs, r.id) {
				all = append(all, r.node)
			}
		}
	case kind == "leader":
		if leader := m.shards[number].leader; leader != nil {
			all = []*node{leader}
		}
	default:
		for _, name := range strings.Split(text, ",") {
			if n := m.byName[name]; n != nil {
				all = append(all, n)
			}
		}
	}
	return slices.DeleteFunc(all, func(n *node) bool { return n.left })
}

// inflict does it. What does not apply (a second crash, a restart of what runs) does nothing, so random faults may overlap.
func (m *Model) inflict(f Fault) {
	if m.core != nil {
		return
	}
	nodes, others := m.targets(f.Target), m.targets(f.Other)
	if f.Kind == Core {
		f.Target = strings.Join(befallen(nodes), ",") // also whom "quorum" has turned out to be
	}
	m.note("%s", f)
	m.emit(Event{Kind: EventFault, Fault: f, Nodes: befallen(append(slices.Clone(nodes), others...))})
	if f.For > 0 {
		form, _ := FormOf(f.Kind)
		names := befallen(nodes)
		m.after(f.For, "fault", func() { m.inflict(Fault{At: m.now, Kind: form.Ends, Target: strings.Join(names, ",")}) })
	}
	switch f.Kind {
	case Join:
		for range f.Count {
			m.addNode().boot()
		}
	case Cut, Part, Block, Deaf, Mute, Flap, Lose, Delay, Duplicate, Reorder:
		m.disturb(f, nodes, others)
	case Heal:
		m.network.heal(nodes)
		for _, n := range nodes {
			n.stale = true
		}
	case Upgrade:
		m.upgrade(nodes, f.By)
	case Overload:
		m.overload(f.Count, f.By)
	case Calm:
		m.load++
	case Core:
		m.healCore(nodes)
	case Recover:
		m.recoverShards(nodes)
	default:
		for _, n := range nodes {
			n.suffer(f)
		}
	}
	m.review()
}

// String is the fault in the words of a scenario.
func (f Fault) String() string {
	text := string(f.Kind)
	for _, word := range []string{f.Target, f.Other} {
		if word != "" {
			text += " " + word
		}
	}
	if f.Count != 0 {
		text += fmt.Sprintf(" %d", f.Count)
	}
	if f.By != 0 {
		text += " " + f.By.String()
	}
	if f.Rate != 0 {
		text += fmt.Sprintf(" %g", f.Rate)
	}
	if f.For != 0 {
		text += " for " + f.For.String()
	}
	return text
}

// disturb adds a fault of the network.
func (m *Model) disturb(f Fault, nodes, others []*node) {
	l := &link{kind: f.Kind, a: map[*node]bool{}, b: map[*node]bool{}, by: f.By, rate: f.Rate}
	for _, n := range others {
		l.b[n] = true
	}
	for _, n := range nodes {
		l.a[n] = true
		n.changed()
		if l.closes() {
			n.stale = true
		}
		if n.up {
			n.watch()
		}
	}
	if len(l.a) == 0 {
		return
	}
	m.network.links = append(m.network.links, l)
	if l.kind == Flap {
		m.flap(l)
	}
}

// flap cuts and heals by turns, until everybody was healed for good.
func (m *Model) flap(l *link) {
	if len(l.a) == 0 {
		return
	}
	l.flaps = !l.flaps
	for _, n := range m.nodes {
		if l.a[n] {
			n.stale = true
			n.changed()
		}
	}
	m.review()
	m.after(l.by, "flap", func() { m.flap(l) })
}

// suffer is what befalls one machine.
func (n *node) suffer(f Fault) {
	n.befallen = n.model.now
	n.changed()
	if n.up {
		n.watch()
	}
	m := n.model
	switch f.Kind {
	case Crash, Wipe:
		n.crash()
		if f.Kind == Wipe {
			n.wipe()
			n.boot()
		}
	case Kill:
		n.kill()
	case Restart:
		if !n.up || n.dead {
			n.boot()
		}
	case Freeze:
		if n.active() {
			n.frozen, n.stale = true, true
		}
	case Thaw:
		n.thaw()
	case Slow:
		n.setSlow(f.Rate)
	case SlowDisk:
		n.disk.slower = f.By
	case FullDisk:
		n.disk.full = true
	case Mend:
		n.disk.slower, n.disk.full = 0, false
		n.setSlow(0)
	case Jump:
		n.setClock(n.clock.real(m.now)+f.By, n.clock.rate)
	case Drift:
		n.setClock(n.clock.real(m.now), f.Rate)
	case SetClock:
		n.setClock(0, 0)
	case Leave:
		n.leave()
	case Drain:
		n.drain(true)
	case Uncordon:
		n.drain(false)
	case Handover:
		n.handOver()
	}
}

// longAgo is the heartbeat of a machine that has just started: longer ago than any limit.
const longAgo = -time.Hour

// crash is a loss of power.
func (n *node) crash() {
	if !n.up {
		return
	}
	n.up, n.dead, n.frozen, n.life = false, false, false, n.life+1
	n.heartbeat = longAgo
	for _, c := range n.pods {
		n.model.changedPod(c.pod.Namespace, n)
	}
	clear(n.pods)
	n.dropReplicas()
}

// kill ends the peer's process. What its containers were just doing is lost, those that run go on.
func (n *node) kill() {
	if !n.up || n.dead {
		return
	}
	n.dead, n.frozen, n.life, n.stale = true, false, n.life+1, true
	for _, uid := range n.running() {
		if c := n.pods[uid]; c.running || c.exited {
			c.stopping = false
		} else {
			delete(n.pods, uid)
			n.model.changedPod(c.pod.Namespace, n)
		}
	}
	n.dropReplicas()
	n.watch()
}

func (n *node) dropReplicas() {
	for _, r := range n.replicas {
		if !r.gone {
			r.crash()
		}
	}
}

// wipe takes the disk of a machine that is down.
func (n *node) wipe() {
	for _, r := range n.replicas {
		r.gone = true
	}
	n.replicas = nil
	n.disk = diskState{identity: n.disk.identity + "'"}
}

func (n *node) thaw() {
	if !n.frozen {
		return
	}
	n.frozen = false
	waited := slices.Clone(n.deferred)
	n.deferred = nil
	for _, s := range waited {
		n.do(0, s.kind, s.do)
	}
}

// setClock sets the wall clock. What leads here sees times from both sides of the jump, which production's monotonic readings set apart:
// its questions that wait for a time are asked anew.
func (n *node) setClock(offset time.Duration, rate float64) {
	n.clock.set(n.model.now, offset, rate)
	n.model.clocksSet = true
	for _, r := range n.replicas {
		if r.turns != nil && r.turns.leads() {
			r.turns.miss()
		}
	}
}

// handOver hands over everything that the peer leads.
func (n *node) handOver() {
	for _, r := range n.replicas {
		if r.leads && !r.gone {
			r.transfer(0)
		}
	}
}

// unfit tells whether a peer should lead nothing (peer/balance.go).
func (n *node) unfit() bool {
	return n.leaving || n.disk.full || n.patience > n.model.now || n.stampable() != nil
}
