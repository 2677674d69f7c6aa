package model

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/peer/lease"
	"shoal/placement"
	"shoal/placement/repair"
)

// meta is what only the leader of the meta shard does, as in peer/meta.go: it judges nodes by their leases, and keeps the shards. Gossip's
// hint is left out.
type meta struct {
	model      *Model
	replica    *replica
	node       *node
	view       *placement.View
	since      time.Time
	table      lease.Table
	leaseJudge repair.Judge
	keeper     keeper
	judging    bool
	broken     map[string]bool // nodes whose renewals do not count; nil before the first judgement
	nodes      int             // how many there were at the last judgement
}

func newMeta(m *Model, r *replica) *meta {
	t := &meta{model: m, replica: r, node: r.node, view: placement.NewView(), since: r.node.monotonic()}
	t.keeper = keeper{meta: t, down: map[string]time.Time{}}
	objects := m.shards[0].objects
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		t.learn(objects[key], objects[key], false)
	}
	t.node.do(lease.JudgeInterval, "judge", t.judge)
	t.node.do(keepInterval, "keep shards", t.keeper.keep)
	t.node.do(balanceInterval, "balance", t.keeper.balance)
	return t
}

func (t *meta) learn(before, now placement.Object, gone bool) {
	if gone {
		if _, ok := before.(*corev1.Node); ok {
			t.view.Delete(before)
		}
	} else if _, ok := now.(*corev1.Node); ok {
		t.view.Upsert(now)
	}
}

// leads tells whether this is still the leader, as far as it knows.
func (t *meta) leads() bool { return t.replica.meta == t && t.replica.leads }

// heard is when a node was last heard of.
func (t *meta) heard(n *node) time.Time {
	if at, ok := t.table.Renewed(n.name); ok && at.After(t.since) {
		return at
	}
	return t.since
}

// isBroken tells whether a node's renewal does not count.
func (t *meta) isBroken(n *node) bool { return t.broken == nil || t.broken[n.name] }

// misled tells whether most of the clocks that the table has heard of lately are wrong, so that it takes the right ones for wrong.
func (t *meta) misled() bool {
	m := t.model
	if !m.clocksSet {
		return false
	}
	heard, wrong := 0, 0
	count := func(n *node) {
		if heard++; n.clock.isWrong(m.now) {
			wrong++
		}
	}
	for _, n := range m.nodes {
		if at, ok := t.table.Renewed(n.name); ok && t.node.monotonic().Sub(at) <= clockMemory {
			count(n)
		}
	}
	if heard == 1 { // then the table's own has a say
		count(t.node)
	}
	return 2*wrong > heard
}

func (t *meta) judge() {
	if !t.leads() {
		return
	}
	t.node.do(lease.JudgeInterval, "judge", t.judge)
	if t.judging {
		return
	}
	plan := t.leaseJudge.PlanNodes(t.view, t.leases(), t.model.repair, t.node.wall())
	t.broken, t.nodes = repair.Broken(t.view, plan), len(t.view.Nodes())
	t.judging = len(plan.Changes) > 0
	t.write(plan.Changes)
}

// write writes judgements one after the other.
func (t *meta) write(changes []placement.Change) {
	m := t.model
	if len(changes) == 0 {
		t.judging = false
		return
	}
	change := changes[0]
	m.propose(t.node, m.shards[0], []placement.Change{change}, func(err error) {
		node := change.Object.(*corev1.Node)
		switch {
		case err != nil:
			m.note("judging %s failed: %s", node.Name, err)
		case change.Verb == placement.UpdateStatus:
			m.note("%s is judged Ready=%s", node.Name, placement.NodeCondition(node, corev1.NodeReady).Status)
		}
		t.write(changes[1:])
	})
}

// leases is the table of renewals, completed for nodes that have not renewed with this leader yet. Its times are this machine's, whose wall
// clock may have jumped since, so ages are what counts, as with the monotonic readings of production.
func (t *meta) leases() map[string]time.Time {
	now := t.node.monotonic()
	times := t.table.Times()
	var names []string
	patience := map[string]bool{}
	for _, n := range t.view.Nodes() {
		names = append(names, n.Name)
		if known := t.model.byName[n.Name]; known != nil && known.patience > t.model.now {
			patience[n.Name] = true
		}
	}
	lease.Takeover{Since: t.since, Patience: patience, LeaseTimeout: t.model.repair.LeaseTimeout}.Complete(times, names, now)
	wall := t.node.wall()
	for name, at := range times {
		times[name] = wall.Add(-now.Sub(at))
	}
	return times
}
