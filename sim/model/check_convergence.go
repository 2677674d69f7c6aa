package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// convergenceCheck compares what users asked for with what runs and with where the rules lead.
type convergenceCheck struct {
	since time.Duration // when it became, and has stayed, as desired; -1 while it is not
	why   string        // it is not

	changes *changes
	of      map[string][]int // by namespace: the workloads in it
	wrong   map[int]string   // by workload: what is not as desired
}

func newConvergenceCheck(m *Model) convergenceCheck {
	c := convergenceCheck{since: -1, changes: m.follow(), of: map[string][]int{}, wrong: map[int]string{}}
	for i, w := range m.cfg.Workloads {
		c.of[w.Name] = append(c.of[w.Name], i)
		c.changes.namespaces[w.Name] = struct{}{}
	}
	return c
}

func (c *convergenceCheck) look(m *Model) {
	if m.now < m.lastHeal || m.busy > 0 && m.core == nil {
		return
	}
	if c.why = c.difference(m); c.why == "" {
		c.why = m.stuckShard()
	}
	switch {
	case c.why != "":
		if c.since >= 0 {
			m.note("not as desired any more: %s", c.why)
			m.emit(Event{Kind: EventAstray, Text: c.why})
		}
		c.since = -1
	case c.since < 0:
		c.since = m.now
		m.note("as desired, %s after the last fault", m.now-m.lastHeal)
		m.emit(Event{Kind: EventDesired})
	}
}

func (c *convergenceCheck) finish(m *Model) {
	if c.since >= 0 {
		m.outcome.Settled = c.since - m.lastHeal
	}
	switch {
	case m.cfg.ReadyWithin == 0:
	case c.since < 0:
		m.violate(checkerConvergence, "%s after the last fault: %s", m.now-m.lastHeal, c.why)
	case m.outcome.Settled > m.cfg.ReadyWithin:
		m.violate(checkerConvergence, "as desired %s after the last fault, not within %s", m.outcome.Settled, m.cfg.ReadyWithin)
	}
}

// difference says what is not as desired, or nothing. It looks again at what has changed.
func (c *convergenceCheck) difference(m *Model) string {
	for _, namespace := range c.changes.takeNamespaces() {
		for _, i := range c.of[namespace] {
			if why := m.wrongWith(m.cfg.Workloads[i]); why != "" {
				c.wrong[i] = why
			} else {
				delete(c.wrong, i)
			}
		}
	}
	if len(c.wrong) == 0 {
		return ""
	}
	return c.wrong[slices.Min(slices.Collect(maps.Keys(c.wrong)))]
}

// wrongWith says what is not as desired with a workload, or nothing.
func (m *Model) wrongWith(w Workload) string {
	ready, away := map[types.UID]bool{}, 0
	for _, placed := range m.checks.placed[w.Name] {
		pod := placed.pod
		if w.Daemon && !m.answers(pod.Spec.NodeName, pod.UID) && m.lostNode(pod.Spec.NodeName) {
			away++ // it stays bound to a machine that is lost, and goes on there
		}
		if runs := m.answers(pod.Spec.NodeName, pod.UID); placement.Ready(pod) != runs {
			return fmt.Sprintf("%s/%s on %s is said to be ready: %t, and runs: %t", pod.Namespace, pod.Name, pod.Spec.NodeName, placement.Ready(pod), runs)
		}
		if placement.Ready(pod) && pod.DeletionTimestamp == nil {
			ready[pod.UID] = true
		}
	}
	if w.Job != nil {
		return m.wrongWithJob(w)
	}
	if want := m.wanted(w) - away; len(ready) != want {
		return fmt.Sprintf("%s has %d of %d pods ready", w.Name, len(ready), want)
	}
	return m.wrongRules(w.Name, ready)
}

// wanted is how many pods a workload has when all is well. Of a Job it is as many as run now, by its status. Of a DaemonSet its own status says it: one on each node that suits it, and those that
// stay bound to nodes that do not suit it any more, because they are lost.
func (m *Model) wanted(w Workload) int {
	if w.Job != nil {
		if job := m.storedJob(w); job != nil {
			return int(job.Status.Active)
		}
		return w.Replicas
	}
	if !w.Daemon {
		return w.Replicas
	}
	set, ok := m.shardOf(w.Name).objects[daemonPrefix+w.Name+"/"+w.Name].(*appsv1.DaemonSet)
	if !ok || set.Status.DesiredNumberScheduled == 0 {
		return w.Replicas
	}
	return int(max(set.Status.DesiredNumberScheduled, set.Status.CurrentNumberScheduled) + set.Status.NumberMisscheduled)
}

// lostNode tells whether the store holds a node for lost, or has none of that name.
func (m *Model) lostNode(name string) bool {
	stored, ok := m.shards[0].objects[kinds[0].prefix+name].(*corev1.Node)
	return !ok || (&placement.Node{Object: stored}).Lost()
}

// wrongRules compares the rules of a namespace's Service with the pods that are ready.
func (m *Model) wrongRules(namespace string, ready map[types.UID]bool) string {
	led := map[types.UID]bool{}
	for _, slice := range m.vipIn[namespace] {
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			if ptr.Deref(endpoint.Conditions.Ready, true) {
				led[endpoint.TargetRef.UID] = true
			}
		}
	}
	if !maps.Equal(led, ready) {
		return fmt.Sprintf("the rules of %s lead to %d pods, %d are ready, and they are not the same", namespace, len(led), len(ready))
	}
	return ""
}

// movingBound is what one replica may take to move.
const movingBound = 10 * time.Second

// stuckShard says which shard is not as it should be, or nothing: it has a leader, exactly the assigned members, none of them lags, and
// nobody keeps a copy that its group has removed.
func (m *Model) stuckShard() string {
	for _, s := range m.shards {
		if s.leads == nil {
			return fmt.Sprintf("shard %d has no leader", s.number)
		}
		moving := m.now-s.reassigned < movingBound
		if !moving && !s.assignment.SettledIn(s.leads.members) {
			return fmt.Sprintf("shard %d is not held by those to whom it is assigned", s.number)
		}
		for _, r := range s.replicas {
			switch {
			case r.gone || moving || !r.node.active() || m.beyond(r.node):
			case !isMember(s.leads.members, r.id):
				return fmt.Sprintf("%s keeps a copy of shard %d that was removed", r.node.name, s.number)
			case r.applied < s.index && s.lagging(r):
				return fmt.Sprintf("the copy of shard %d on %s has %d of %d entries", s.number, r.node.name, r.applied, s.index)
			}
		}
	}
	return ""
}

// lagging tells whether a copy is behind by more than what is under way: it has not moved since it was looked at some seconds ago.
func (s *shard) lagging(r *replica) bool {
	if r.seen != r.applied {
		r.seen, r.looks = r.applied, 0
	}
	r.looks++
	return r.looks > 6
}
