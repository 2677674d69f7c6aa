package workload

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// rankForDeletion orders pods by how little is lost with them, as ReplicaSets choose: without a
// node, pending, not ready, of lower deletion cost, doubled up on a node, ready or created more
// recently (by orders of magnitude of age, so that ages spread), restarted more often.
// Source: "Scaling a ReplicaSet", kubernetes.io/docs/concepts/workloads/controllers/replicaset.
func rankForDeletion(pods, related []*placement.Pod, now time.Time) []*placement.Pod {
	together := map[string]int{}
	for _, pod := range related {
		if placement.Active(pod.Object) {
			together[pod.Object.Spec.NodeName]++
		}
	}
	candidates := make([]candidate, len(pods))
	for i, pod := range pods {
		candidates[i] = newCandidate(pod, together[pod.Object.Spec.NodeName], now)
	}
	slices.SortStableFunc(candidates, candidate.compare)
	ranked := make([]*placement.Pod, len(pods))
	for i, c := range candidates {
		ranked[i] = c.pod
	}
	return ranked
}

type candidate struct {
	pod              *placement.Pod
	assigned, ready  bool
	phase            int
	cost             int32
	together         int
	readyAge         age
	sidecar, restart int32 // most restarts of one container
	created          age
}

func newCandidate(pod *placement.Pod, together int, now time.Time) candidate {
	o := pod.Object
	c := candidate{
		pod: pod, assigned: o.Spec.NodeName != "", ready: placement.Ready(o),
		cost: deletionCost(o), together: together, created: ageOf(o.CreationTimestamp, now),
	}
	switch o.Status.Phase {
	case corev1.PodUnknown:
		c.phase = 1
	case corev1.PodRunning:
		c.phase = 2
	}
	if c.ready {
		c.readyAge = ageOf(placement.PodCondition(o, corev1.PodReady).LastTransitionTime, now)
	}
	for _, s := range o.Status.ContainerStatuses {
		c.restart = max(c.restart, s.RestartCount)
	}
	for _, s := range o.Status.InitContainerStatuses {
		if isSidecar(o, s.Name) {
			c.sidecar = max(c.sidecar, s.RestartCount)
		}
	}
	return c
}

func isSidecar(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// compare is negative when a should go before b.
func (a candidate) compare(b candidate) int {
	if by := cmp.Or(
		falseFirst(a.assigned, b.assigned),
		cmp.Compare(a.phase, b.phase),
		falseFirst(a.ready, b.ready),
		cmp.Compare(a.cost, b.cost),
		cmp.Compare(b.together, a.together),
	); by != 0 {
		return by
	}
	if a.ready && b.ready && !a.readyAge.at.Equal(b.readyAge.at) {
		return cmp.Or(a.readyAge.compare(b.readyAge), cmp.Compare(a.pod.Object.UID, b.pod.Object.UID))
	}
	return cmp.Or(
		cmp.Compare(b.restart, a.restart),
		cmp.Compare(b.sidecar, a.sidecar),
		a.created.compare(b.created),
		cmp.Compare(a.pod.Object.UID, b.pod.Object.UID),
	)
}

// compareProgress is negative when a has got less far than b: without a node, pending, not ready, ready or
// created more recently, restarted more often. Jobs delete in this order.
func compareProgress(a, b *corev1.Pod) int {
	x, y := newCandidate(&placement.Pod{Object: a}, 0, time.Time{}), newCandidate(&placement.Pod{Object: b}, 0, time.Time{})
	if by := cmp.Or(falseFirst(x.assigned, y.assigned), cmp.Compare(x.phase, y.phase), falseFirst(x.ready, y.ready)); by != 0 {
		return by
	}
	if x.ready && !x.readyAge.at.Equal(y.readyAge.at) {
		return laterFirst(x.readyAge.at, y.readyAge.at)
	}
	return cmp.Or(
		cmp.Compare(y.restart, x.restart),
		cmp.Compare(y.sidecar, x.sidecar),
		laterFirst(a.CreationTimestamp.Time, b.CreationTimestamp.Time),
		cmp.Compare(a.UID, b.UID),
	)
}

// laterFirst orders times, those that are not known before all others.
func laterFirst(a, b time.Time) int {
	return cmp.Or(falseFirst(!a.IsZero(), !b.IsZero()), b.Compare(a))
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// age is a moment seen from now, comparable by orders of magnitude.
type age struct {
	at        time.Time
	magnitude int
}

func ageOf(t metav1.Time, now time.Time) age {
	if t.IsZero() {
		return age{magnitude: math.MinInt}
	}
	passed := now.Sub(t.Time)
	if passed <= 0 {
		return age{at: t.Time, magnitude: -1}
	}
	return age{at: t.Time, magnitude: int(math.Log2(float64(passed)))}
}

// compare is negative when a is the younger, or has no time at all.
func (a age) compare(b age) int { return cmp.Compare(a.magnitude, b.magnitude) }

// deletionCost is the pod's controller.kubernetes.io/pod-deletion-cost, 0 if absent or malformed.
func deletionCost(pod *corev1.Pod) int32 {
	text, ok := pod.Annotations[corev1.PodDeletionCost]
	if !ok || text == "" || text[0] == '+' || (text[0] == '0' && len(text) > 1) {
		return 0
	}
	cost, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0
	}
	return int32(cost)
}
