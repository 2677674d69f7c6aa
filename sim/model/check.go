package model

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// The checkers, always on. Each has a file of its own: check_NAME.go.
const (
	checkerCapacity    = "capacity"    // no node is over-committed
	checkerIdentity    = "identity"    // one StatefulSet identity never runs twice at once
	checkerConvergence = "convergence" // after the last fault: as desired, within the bound
	checkerVIP         = "vip"         // no rule leads to a pod that is gone for longer than the bound
	checkerClaims      = "claims"      // no node holds room for a pod that is not its own
	checkerBrake       = "brake"       // nobody is evicted while most of a zone looks lost
)

// checkEvery is how often the checkers that look at states rather than at steps do so.
const checkEvery = 500 * time.Millisecond

// maxViolations bounds a report; one bug often shows everywhere.
const maxViolations = 20

// checks holds the checkers, and what several of them need.
type checks struct {
	model *Model
	// bound are the pods of the store that take room, by node. It is also what nodes follow.
	bound map[string]map[types.UID]*corev1.Pod

	capacity    capacityCheck
	identity    identityCheck
	convergence convergenceCheck
	vip         vipCheck
	claims      claimsCheck
	brake       brakeCheck
}

func newChecks(m *Model) checks {
	return checks{
		model: m, bound: map[string]map[types.UID]*corev1.Pod{}, capacity: newCapacityCheck(m.cfg.Allocatable), identity: identityCheck{},
		convergence: convergenceCheck{since: -1}, vip: vipCheck{}, claims: claimsCheck{}, brake: brakeCheck{},
	}
}

// violate records that a checker has found something.
func (m *Model) violate(checker, format string, args ...any) {
	if len(m.outcome.Violations) >= maxViolations {
		return
	}
	v := Violation{Checker: checker, At: m.now, Message: fmt.Sprintf(format, args...)}
	m.outcome.Violations = append(m.outcome.Violations, v)
	m.note("VIOLATION %s: %s", v.Checker, v.Message)
	m.emit(Event{Kind: EventViolation, Text: v.Checker + ": " + v.Message})
}

// committed follows every transaction. before are the objects of the changes as they were.
func (c *checks) committed(s *shard, changes []placement.Change, before []placement.Object) {
	m := c.model
	for i, change := range changes {
		now := s.objects[keyOf(change.Object)]
		switch change.Object.(type) {
		case *corev1.Pod:
			old, _ := before[i].(*corev1.Pod)
			pod, _ := now.(*corev1.Pod)
			c.brake.deleted(m, change, old)
			c.move(old, pod)
		case *corev1.Node:
			c.brake.look(m)
		}
	}
}

// move keeps the index and looks at the node that got more.
func (c *checks) move(old, now *corev1.Pod) {
	if old != nil && old.Spec.NodeName != "" {
		if had := c.bound[old.Spec.NodeName][old.UID]; had != nil {
			delete(c.bound[old.Spec.NodeName], old.UID)
			c.capacity.take(old, -1)
		}
	}
	if now == nil || now.Spec.NodeName == "" || placement.Finished(now) {
		return
	}
	if c.bound[now.Spec.NodeName] == nil {
		c.bound[now.Spec.NodeName] = map[types.UID]*corev1.Pod{}
	}
	if c.bound[now.Spec.NodeName][now.UID] == nil {
		c.capacity.take(now, 1)
	}
	c.bound[now.Spec.NodeName][now.UID] = now
	c.capacity.look(c.model, now.Spec.NodeName)
}

// boundTo are the pods that a shard has bound to a node.
func (c *checks) boundTo(s *shard, node string) map[types.UID]*corev1.Pod {
	of := map[types.UID]*corev1.Pod{}
	for uid, pod := range c.bound[node] {
		if c.model.shardOf(pod.Namespace) == s {
			of[uid] = pod
		}
	}
	return of
}

func (c *checks) started(n *node, started *container) { c.identity.started(c.model, n, started) }

// check looks at the state of everything.
func (m *Model) check() {
	m.checks.vip.look(m)
	m.checks.claims.look(m)
	m.checks.convergence.look(m)
	m.after(checkEvery, "check", m.check)
}

func (m *Model) finish() {
	m.checks.convergence.finish(m)
	m.note("done: %d steps, %d evictions, %d elections, %d violations", m.outcome.Steps, m.outcome.Evictions, m.outcome.Elections, len(m.outcome.Violations))
}
