package model

import (
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// stateCheck compares the end with what would stand there if nothing had happened: every workload has exactly its objects, whoever made
// them, and nothing else is left. It is what the three patterns that break operators elsewhere would show (Sun et al., "Automatic
// reliability testing for cluster management controllers", OSDI 2022): a crash between two writes leaves a half-made state behind, a
// missed event leaves what should be gone, and a stale read makes something twice.
type stateCheck struct{}

func (stateCheck) finish(m *Model) {
	if m.cfg.ReadyWithin == 0 || m.checks.convergence.since < 0 {
		return // what is not even ready is told of by another checker
	}
	for _, w := range m.cfg.Workloads {
		objects := m.shardOf(w.Name).objects
		counts, uids := map[string]int{}, map[types.UID]bool{}
		var of []placement.Object
		for _, key := range slices.Sorted(maps.Keys(objects)) {
			if o := objects[key]; o.GetNamespace() == w.Name {
				of = append(of, o)
				uids[o.GetUID()] = true
			}
		}
		for _, o := range of {
			counts[kindOf(o)]++
			if owner := metav1.GetControllerOfNoCopy(o); owner != nil && !uids[owner.UID] {
				m.violate(checkerState, "%s is left of %s %s, which is gone", keyOf(o), owner.Kind, owner.Name)
			}
			if pod, ok := o.(*corev1.Pod); ok && metav1.GetControllerOfNoCopy(pod) == nil {
				m.violate(checkerState, "%s belongs to nobody", keyOf(pod))
			}
		}
		if w.Job != nil {
			m.checkJob(w, of)
			continue
		}
		want := map[string]int{"service": 1, "endpoints": 1, "slice": 1, "set": 1, "pod": m.wanted(w), "history": 1, "budget": len(w.Budgets)}
		for _, kind := range slices.Sorted(maps.Keys(want)) {
			if counts[kind] != want[kind] {
				m.violate(checkerState, "%s ends with %d of %s, %d are right: %s", w.Name, counts[kind], kind, want[kind], names(of, kind))
			}
		}
		m.checkSlice(w, of)
	}
}

// checkJob compares a Job that has ended well with its pods: as many have succeeded as were asked for and none more, it has counted each, and
// none is left that runs.
func (m *Model) checkJob(w Workload, of []placement.Object) {
	job, succeeded := m.storedJob(w), int32(0)
	for _, o := range of {
		pod, ok := o.(*corev1.Pod)
		switch {
		case !ok:
		case !placement.Finished(pod):
			m.violate(checkerState, "%s goes on though the Job %s has ended", pod.Name, w.Name)
		case len(pod.Finalizers) > 0 || pod.DeletionTimestamp != nil:
			m.violate(checkerState, "%s was not let go by the Job %s, which has ended", pod.Name, w.Name)
		case pod.Status.Phase == corev1.PodSucceeded:
			succeeded++
		}
	}
	if want := completions(w); job.Status.Succeeded != want || succeeded > want {
		m.violate(checkerState, "the Job %s says that %d pods have succeeded, %d are there, %d are right", w.Name, job.Status.Succeeded, succeeded, want)
	}
}

// checkSlice compares the addresses of a Service with the pods.
func (m *Model) checkSlice(w Workload, of []placement.Object) {
	listed := map[types.UID]bool{}
	for _, o := range of {
		if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
			for i := range slice.Endpoints {
				if ref := slice.Endpoints[i].TargetRef; ref != nil && ptr.Deref(slice.Endpoints[i].Conditions.Ready, true) {
					listed[ref.UID] = true
				}
			}
		}
	}
	for _, o := range of {
		if pod, ok := o.(*corev1.Pod); ok && !listed[pod.UID] && (!w.Daemon || placement.Ready(pod)) {
			m.violate(checkerState, "the endpoints of %s lack %s", w.Name, pod.Name)
		}
	}
}

// kindOf is the kind of an object as stateCheck counts it.
func kindOf(o placement.Object) string {
	switch o.(type) {
	case *corev1.Service:
		return "service"
	case *discoveryv1.EndpointSlice:
		return "slice"
	case *appsv1.Deployment, *appsv1.StatefulSet, *appsv1.DaemonSet:
		return "set"
	case *appsv1.ReplicaSet, *appsv1.ControllerRevision:
		return "history"
	case *corev1.Pod:
		return "pod"
	case *policyv1.PodDisruptionBudget:
		return "budget"
	}
	return "endpoints"
}

func names(of []placement.Object, kind string) string {
	var all []string
	for _, o := range of {
		if kindOf(o) == kind {
			all = append(all, o.GetName())
		}
	}
	return strings.Join(all, " ")
}
