package model

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/consensus/store"
	"shoal/placement"
	"shoal/runtime/containerd/fence"
)

// What people order, rather than what befalls a cluster: upgrades, draining, leaving, and too much work.

// announced is for how long the others wait for a peer that has announced its restart.
const announced = 15 * time.Second

// upgrade restarts peers one after the other, each in order: it hands over what it leads and says that it will be back.
func (m *Model) upgrade(nodes []*node, down time.Duration) {
	if len(nodes) == 0 || m.core != nil {
		return
	}
	m.busy++
	n, rest := nodes[0], nodes[1:]
	next := func() {
		m.busy--
		m.lastHeal = max(m.lastHeal, m.now)
		m.upgrade(rest, down)
	}
	if !n.active() {
		next()
		return
	}
	if m.shards[0].leaderFor(n) != nil && m.now-n.renewed <= fence.Kept {
		n.patience, n.stopping = m.now+announced, true
		n.heartbeat = n.patience - fence.KillAfter
	}
	n.handOver()
	m.after(500*time.Millisecond, "stop for the upgrade", func() {
		m.note("%s stops for its upgrade", n.name)
		n.kill()
		n.changed()
		m.review()
		m.after(down, "start after the upgrade", func() {
			if n.dead {
				n.boot()
			}
			m.review()
			m.upgraded(n, next)
		})
	})
}

// upgraded waits until a peer is back: all its copies hear a leader.
func (m *Model) upgraded(n *node, then func()) {
	m.after(time.Second, "upgraded?", func() {
		back := n.known && !n.stale && !slices.ContainsFunc(n.replicas, func(r *replica) bool { return !r.gone && r.shard.leads == nil })
		if n.active() && (!back || n.patience > m.now) && m.now < m.cfg.Length {
			m.upgraded(n, then)
			return
		}
		then()
	})
}

// drain cordons a node and moves its pods away, as kubectl drain does, or takes the cordon off.
func (n *node) drain(on bool) {
	m := n.model
	n.draining = on
	user := m.shards[0].leader
	stored, ok := m.shards[0].objects[kinds[0].prefix+n.name].(*corev1.Node)
	if user == nil || !ok {
		m.after(time.Second, "drain", func() {
			if n.draining == on {
				n.drain(on)
			}
		})
		return
	}
	want := stored.DeepCopy()
	want.Spec.Unschedulable = on
	m.propose(user, m.shards[0], []placement.Change{{Verb: placement.Update, Object: want, ResourceVersion: stored.ResourceVersion}}, func(err error) {
		switch {
		case n.draining != on:
		case err != nil:
			m.after(time.Second, "drain", func() { n.drain(on) })
		case on:
			n.evictAll()
		}
	})
}

// evictAll deletes a node's pods, in order and again, until none is left.
func (n *node) evictAll() {
	m := n.model
	if !n.draining && !n.leaving {
		return
	}
	left := false
	for _, pod := range m.checks.bound[n.name].byUID() {
		if owner := metav1.GetControllerOfNoCopy(pod); owner != nil && owner.Kind == placement.KindDaemonSet && !n.leaving {
			continue // kubectl drain --ignore-daemonsets: they would be made again at once
		}
		if left = true; pod.DeletionTimestamp != nil {
			continue
		}
		if s := m.shardOf(pod.Namespace); s.leader != nil {
			if changes, granted := s.eviction(pod, m.time()); granted {
				m.propose(s.leader, s, changes, func(error) {})
			}
		}
	}
	if left {
		m.after(time.Second, "drain", n.evictAll)
	}
}

// eviction is what the API's eviction of a pod writes, in one transaction: every budget that protects the pod counts down, and the pod is
// deleted. Not granted while a budget allows none.
func (s *shard) eviction(pod *corev1.Pod, now time.Time) (changes []placement.Change, granted bool) {
	for i := range s.model.budgetsOf(pod.Namespace) {
		budget, ok := s.objects[fmt.Sprintf("%s%s/%s-%d", budgetPrefix, pod.Namespace, pod.Namespace, i)].(*policyv1.PodDisruptionBudget)
		if !ok || !placement.Protects(budget, pod.Labels) {
			continue
		}
		if budget.Status.DisruptionsAllowed <= 0 || budget.Status.ObservedGeneration != budget.Generation {
			return nil, false
		}
		want := budget.DeepCopy()
		want.Status.DisruptionsAllowed--
		if want.Status.DisruptedPods == nil {
			want.Status.DisruptedPods = map[string]metav1.Time{}
		}
		want.Status.DisruptedPods[pod.Name] = metav1.NewTime(now)
		changes = append(changes, placement.Change{Verb: placement.UpdateStatus, Object: want, UID: budget.UID, ResourceVersion: budget.ResourceVersion})
	}
	return append(changes, placement.Change{Verb: placement.Delete, Object: pod, UID: pod.UID}), true
}

// budgetsOf is how many budgets a namespace has.
func (m *Model) budgetsOf(namespace string) int {
	for _, w := range m.cfg.Workloads {
		if w.Name == namespace {
			return len(w.Budgets)
		}
	}
	return 0
}

// leave makes a peer give up what it holds, and then go (peer leave).
func (n *node) leave() {
	if n.leaving || n.left {
		return
	}
	n.leaving = true
	n.model.busy++
	n.drain(true)
	n.model.after(time.Second, "leave", n.tryLeave)
}

func (n *node) tryLeave() {
	m := n.model
	holds := slices.ContainsFunc(n.replicas, func(r *replica) bool { return !r.gone })
	if holds || len(m.checks.bound[n.name]) > 0 || !n.active() {
		m.after(time.Second, "leave", n.tryLeave)
		return
	}
	stored, ok := m.shards[0].objects[kinds[0].prefix+n.name].(*corev1.Node)
	if user := m.shards[0].leader; ok && user != nil {
		m.propose(user, m.shards[0], []placement.Change{{Verb: placement.Delete, Object: stored, UID: stored.UID}}, func(err error) {
			if err != nil {
				m.after(time.Second, "leave", n.tryLeave)
				return
			}
			m.note("%s has left", n.name)
			n.crash()
			n.left, n.leaving = true, false
			m.busy--
			m.lastHeal = max(m.lastHeal, m.now)
			m.review()
		})
		return
	}
	m.after(time.Second, "leave", n.tryLeave)
}

// overload lets clients write to all shards, through any peer, until it is calm.
func (m *Model) overload(clients int, pause time.Duration) {
	load := m.load
	for i := range clients {
		var write func()
		count := 0
		write = func() {
			if m.load != load {
				return
			}
			m.after(pause, "load", write)
			n, s := m.nodes[m.chance.IntN(len(m.nodes))], m.shards[m.chance.IntN(len(m.shards))]
			if !n.active() {
				return
			}
			count++
			m.proposeTransaction(n, s, store.Transaction{Ops: []store.Op{{
				Key: fmt.Sprintf("/load/%d", i), Value: fmt.Appendf(nil, "%d", count),
			}}}, nil, func(store.Result, error) {})
		}
		m.after(m.between(0, pause), "load", write)
	}
}
