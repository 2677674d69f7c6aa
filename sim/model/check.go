package model

import (
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// The checkers, always on. Each has a file of its own: check_NAME.go.
const (
	checkerCapacity    = "capacity"    // no node is over-committed
	checkerIdentity    = "identity"    // one StatefulSet identity never runs twice at once
	checkerConvergence = "convergence" // after the last fault: as desired, within the bound
	checkerVIP         = "vip"         // no rule leads to a pod that is gone for longer than the bound
	checkerClaims      = "claims"      // no node holds room for a pod that is not its own
	checkerReplicas    = "replicas"    // replicas of a shard are the same at the same index, and there are enough of them
	checkerFencing     = "fencing"     // a machine that is cut off has stopped in time what must not run twice
	checkerRestarts    = "restarts"    // no container is ended because a peer or a control replica failed
	checkerState       = "state"       // the end is what it would be if nothing had happened: nothing made twice, nothing left over
	checkerClock       = "clock"       // no revision is far ahead of time
	checkerCalm        = "calm"        // nobody fights over whether a node is ready
	checkerRevisions   = "revisions"   // no client sees a revision go back
	checkerOperators   = "operators"   // users' controllers come to the same end, however they are disturbed
	checkerBrake       = "brake"       // nobody is evicted while most of a zone looks lost
)

// checkEvery is how often the checkers that look at states rather than at steps do so.
const checkEvery = 500 * time.Millisecond

// maxViolations bounds a report; one bug often shows everywhere.
const maxViolations = 20

// checks holds the checkers, and what several of them need.
type checks struct {
	model *Model
	// bound are the pods of the store that take room, by node and shard. It is also what nodes follow.
	bound map[string]podList
	// placed are the same pods, by namespace and the node's index.
	placed map[string]podList

	capacity    capacityCheck
	identity    identityCheck
	convergence convergenceCheck
	vip         vipCheck
	claims      claimsCheck
	brake       brakeCheck
	replicas    replicasCheck
	clients     clientsCheck
	fencing     fencingCheck
	restarts    restartsCheck
	state       stateCheck
	calm        calmCheck
	operators   operatorsCheck
}

func newChecks(m *Model) checks {
	return checks{
		model: m, bound: map[string]podList{}, placed: map[string]podList{}, capacity: newCapacityCheck(m.cfg.Allocatable),
		identity: newIdentityCheck(), convergence: newConvergenceCheck(m), vip: newVIPCheck(m), claims: newClaimsCheck(m), brake: newBrakeCheck(),
		calm: calmCheck{turns: map[string][]time.Duration{}},
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
		case *batchv1.Job:
			m.changedPod(change.Object.GetNamespace(), nil)
		case *corev1.Node:
			c.brake.look(m, change.Object.GetName())
			if readiness(before[i]) != readiness(now) {
				c.calm.changed(m, change.Object.GetName())
			}
		}
	}
}

// move keeps the indexes and looks at the node that got more.
func (c *checks) move(old, now *corev1.Pod) {
	if now != nil && (now.Spec.NodeName == "" || placement.Finished(now)) {
		now = nil
	}
	if old != nil && old.Spec.NodeName != "" && c.boundTo(c.model.shardOf(old.Namespace), old.Spec.NodeName).get(c.group(old), old.UID) != nil {
		c.capacity.take(old, -1)
		if now == nil || now.UID != old.UID || now.Spec.NodeName != old.Spec.NodeName {
			c.unlist(old)
		} else {
			c.capacity.take(now, 1)
		}
	}
	if now == nil {
		return
	}
	if c.list(now) {
		c.capacity.take(now, 1)
	}
	c.capacity.look(c.model, now.Spec.NodeName)
}

// group is a pod's in the list of its node.
func (c *checks) group(pod *corev1.Pod) int { return int(c.model.shardOf(pod.Namespace).number) }

// place is a pod's group in the list of its namespace: its node's index, -1 for a node that the model does not have.
func (c *checks) place(pod *corev1.Pod) int {
	if n := c.model.byName[pod.Spec.NodeName]; n != nil {
		return n.index
	}
	return -1
}

// list puts a pod into the indexes, and tells whether it is new there.
func (c *checks) list(pod *corev1.Pod) bool {
	bound, placed := c.bound[pod.Spec.NodeName], c.placed[pod.Namespace]
	added := bound.put(c.group(pod), pod)
	placed.put(c.place(pod), pod)
	c.bound[pod.Spec.NodeName], c.placed[pod.Namespace] = bound, placed
	c.model.changedPod(pod.Namespace, c.model.byName[pod.Spec.NodeName])
	return added
}

func (c *checks) unlist(pod *corev1.Pod) {
	bound, placed := c.bound[pod.Spec.NodeName], c.placed[pod.Namespace]
	bound.drop(c.group(pod), pod.UID)
	placed.drop(c.place(pod), pod.UID)
	c.bound[pod.Spec.NodeName], c.placed[pod.Namespace] = bound, placed
	c.model.changedPod(pod.Namespace, c.model.byName[pod.Spec.NodeName])
}

// boundTo are the pods that a shard has bound to a node.
func (c *checks) boundTo(s *shard, node string) podList { return c.bound[node].in(int(s.number)) }

func (c *checks) started(n *node, started *container) { c.identity.look(c.model, n, started) }

// check looks at the state of everything.
func (m *Model) check() {
	m.checks.vip.look(m)
	m.checks.claims.look(m)
	m.checks.fencing.look(m)
	m.checks.convergence.look(m)
	m.after(checkEvery, "check", m.check)
}

func (m *Model) finish() {
	m.checks.convergence.finish(m)
	m.checks.replicas.finish(m)
	m.checks.clients.finish(m)
	m.checks.operators.finish(m)
	m.checks.state.finish(m)
	m.note("done: %d steps, %d evictions, %d elections, %d violations", m.outcome.Steps, m.outcome.Evictions, m.outcome.Elections, len(m.outcome.Violations))
}
