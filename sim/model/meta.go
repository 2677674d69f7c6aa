package model

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
	"shoal/placement/repair"
)

// meta judges nodes by their leases, as peer/meta.go does. Gossip's hint and announced restarts are left out.
type meta struct {
	model   *Model
	node    *node
	view    *placement.View
	since   time.Time
	renewed map[string]time.Time
}

// judgeInterval is peer's: how often leases are looked at.
const judgeInterval = 200 * time.Millisecond

// takeoverGrace is peer's: what nodes are given, on top of the lease, to find a new meta leader.
const takeoverGrace = 3 * time.Second

func newMeta(m *Model, n *node) *meta {
	meta := &meta{model: m, node: n, view: placement.NewView(), since: m.time(), renewed: map[string]time.Time{}}
	objects := m.shards[0].objects
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		meta.learn(objects[key], objects[key], false)
	}
	n.do(judgeInterval, "judge", meta.judge)
	return meta
}

func (t *meta) learn(before, now placement.Object, gone bool) {
	if gone {
		t.view.Delete(before)
	} else if _, ok := now.(*corev1.Node); ok {
		t.view.Upsert(now)
	}
}

// leads tells whether this is still the leader; another may have been elected meanwhile.
func (t *meta) leads() bool { return t.model.shards[0].meta == t }

func (t *meta) judge() {
	if !t.leads() {
		return
	}
	m := t.model
	t.node.do(judgeInterval, "judge", t.judge)
	plan := repair.PlanNodes(t.view, t.leases(), m.repair, m.time())
	for _, change := range plan.Changes {
		node := change.Object.(*corev1.Node)
		if err := m.commit(t.node, m.shards[0], []placement.Change{change}); err != nil {
			m.note("judging %s failed: %s", node.Name, err)
			continue
		}
		if change.Verb == placement.UpdateStatus {
			m.note("%s is judged Ready=%s", node.Name, placement.NodeCondition(node, corev1.NodeReady).Status)
		}
	}
}

// leases is the table of renewals, completed for nodes that have not renewed with this leader yet.
func (t *meta) leases() map[string]time.Time {
	at := maps.Clone(t.renewed)
	for _, n := range t.view.Nodes() {
		if renewed, heard := at[n.Name]; !heard || renewed.Before(t.since) {
			at[n.Name] = t.since.Add(takeoverGrace)
		}
	}
	return at
}
