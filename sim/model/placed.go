package model

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/workload"
)

// running is a Deployment as it would be some time after it was rolled out: its ReplicaSet and its pods, bound to the nodes by turns, ready, and
// with containers that run. Conditions and endpoints are left to the leader. The changes are one transaction; undo takes the containers away
// again if it was not made.
func (m *Model) running(d *appsv1.Deployment) (changes []placement.Change, undo func()) {
	now := m.time()
	d.UID = placement.NewNames("running", d.Name).UID()
	view := placement.NewView()
	view.Upsert(d)
	changes = append(changes, placement.Change{Verb: placement.Create, Object: d})
	var started []*corev1.Pod
	for _, change := range workload.Plan(view, placement.Ref{Kind: placement.KindDeployment, NamespacedName: types.NamespacedName{Namespace: d.Namespace, Name: d.Name}}, now).Changes {
		pod, isPod := change.Object.(*corev1.Pod)
		switch {
		case change.Verb != placement.Create:
		case !isPod:
			changes = append(changes, change)
		default:
			pod.Spec.NodeName = m.nodes[m.placed%len(m.nodes)].name
			m.placed++
			started = append(started, pod)
			changes = append(changes, change, m.runs(pod, now))
		}
	}
	return changes, func() {
		for _, pod := range started {
			delete(m.byName[pod.Spec.NodeName].pods, pod.UID)
		}
	}
}

// runs starts a pod's container without delay, and returns the change that says so.
func (m *Model) runs(pod *corev1.Pod, now time.Time) placement.Change {
	n := m.byName[pod.Spec.NodeName]
	c := &container{pod: pod, identity: identity(pod), ip: n.nextIP(), running: true}
	n.pods[pod.UID] = c
	said := *pod
	said.Status = statusOf(pod, c, now)
	return placement.Change{Verb: placement.UpdateStatus, Object: &said}
}

// nextIP is an address of the node's range.
func (n *node) nextIP() string {
	n.ips++
	return fmt.Sprintf("10.%d.%d.%d", 32+n.index/256, n.index%256, 2+n.ips%250)
}
