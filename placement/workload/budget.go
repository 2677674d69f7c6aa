package workload

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// evictionTimeout is how long a pod whose eviction was granted counts as gone although it is still there. The
// API writes down when it granted it; a pod that is there after that was not deleted after all.
const evictionTimeout = 2 * time.Minute

// PlanBudget plans a PodDisruptionBudget's status: how many of its pods the eviction API may still take.
// The API counts down by itself with each eviction that it grants. Source of the rules:
// kubernetes.io/docs/tasks/run-application/configure-pdb.
func PlanBudget(v *placement.View, seen *policyv1.PodDisruptionBudget, now time.Time) placement.Plan {
	var plan placement.Plan
	want := seen.DeepCopy()
	want.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: seen.Generation, Conditions: want.Status.Conditions}
	allowed := metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, ObservedGeneration: seen.Generation,
		Reason: policyv1.InsufficientPodsReason, LastTransitionTime: metav1.NewTime(now),
	}
	var pods []*corev1.Pod
	v.EachPodIn(seen.Namespace, func(p *placement.Pod) {
		if placement.Protects(seen, p.Object.Labels) {
			pods = append(pods, p.Object)
		}
	})
	expected, desired, err := healthyWanted(v, seen, pods)
	if err != nil {
		// As upstream: the counts stay as they were, and no eviction is granted.
		want.Status = *seen.Status.DeepCopy()
		want.Status.ObservedGeneration, want.Status.DisruptionsAllowed = seen.Generation, 0
		allowed.Reason, allowed.Message = policyv1.SyncFailedReason, err.Error()
	} else {
		s := &want.Status
		s.DisruptedPods = stillLeaving(seen, pods, &plan, now)
		s.CurrentHealthy = healthy(pods, s.DisruptedPods)
		s.DesiredHealthy, s.ExpectedPods = desired, expected
		if expected > 0 {
			s.DisruptionsAllowed = max(s.CurrentHealthy-desired, 0)
		}
		if s.DisruptionsAllowed > 0 {
			allowed.Status, allowed.Reason = metav1.ConditionTrue, policyv1.SufficientPodsReason
		}
	}
	meta.SetStatusCondition(&want.Status.Conditions, allowed)
	if !apiequality.Semantic.DeepEqual(seen.Status, want.Status) {
		plan.Add(placement.Updating(placement.UpdateStatus, seen, want))
	}
	return plan
}

// stillLeaving are the pods whose eviction was granted and that are neither terminating nor overdue.
func stillLeaving(seen *policyv1.PodDisruptionBudget, pods []*corev1.Pod, plan *placement.Plan, now time.Time) map[string]metav1.Time {
	leaving := map[string]metav1.Time{}
	for _, pod := range pods {
		granted, ok := seen.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		if until := granted.Add(evictionTimeout); now.Before(until) {
			leaving[pod.Name] = granted
			plan.RecheckAt(until)
		}
	}
	if len(leaving) == 0 {
		return nil
	}
	return leaving
}

func healthy(pods []*corev1.Pod, leaving map[string]metav1.Time) int32 {
	n := int32(0)
	for _, pod := range pods {
		if _, goes := leaving[pod.Name]; !goes && pod.DeletionTimestamp == nil && placement.Ready(pod) {
			n++
		}
	}
	return n
}

// healthyWanted is how many pods there should be, and how many of them must stay healthy.
func healthyWanted(v *placement.View, seen *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, err error) {
	least, most := seen.Spec.MinAvailable, seen.Spec.MaxUnavailable
	if most == nil && (least == nil || least.Type == intstr.Int) {
		return int32(len(pods)), ptr.Deref(least, intstr.FromInt32(0)).IntVal, nil
	}
	if expected, err = expectedPods(v, pods); err != nil {
		return 0, 0, err
	}
	bound := most
	if bound == nil {
		bound = least
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(bound, int(expected), true)
	if err != nil {
		return 0, 0, err
	}
	if most != nil {
		n = int(expected) - n
	}
	return expected, int32(max(n, 0)), nil
}

// expectedPods sums the sizes of the pods' controllers. A size that is in no object of the view, of a custom
// resource, is taken to be the number of its pods.
func expectedPods(v *placement.View, pods []*corev1.Pod) (int32, error) {
	sizes := map[types.UID]int32{}
	others := map[types.UID]int32{}
	for _, pod := range pods {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			continue // nobody makes another in its place: such pods have no expected number
		}
		uid, size, found := sizeOf(v, pod.Namespace, ref)
		switch {
		case found:
			sizes[uid] = size
		case ref.Kind == placement.KindDaemonSet || ref.Kind == placement.KindJob:
			return 0, fmt.Errorf("%s %q of pod %q does not implement the scale subresource", ref.Kind, ref.Name, pod.Name)
		default:
			others[ref.UID]++
		}
	}
	total := int32(0)
	for _, size := range sizes {
		total += size
	}
	for _, size := range others {
		total += size
	}
	return total, nil
}

// sizeOf is the size of a pod's controller, of its Deployment if a ReplicaSet has one.
func sizeOf(v *placement.View, namespace string, ref *metav1.OwnerReference) (types.UID, int32, bool) {
	switch ref.Kind {
	case placement.KindReplicaSet:
		rs, ok := v.ReplicaSets.Get(namespace, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, false
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == placement.KindDeployment {
			if d, ok := v.Deployments.Get(namespace, up.Name); ok && d.UID == up.UID {
				return d.UID, ptr.Deref(d.Spec.Replicas, 1), true
			}
		}
		return rs.UID, ptr.Deref(rs.Spec.Replicas, 1), true
	case placement.KindReplicationController:
		if rc, ok := v.Replication.Get(namespace, ref.Name); ok && rc.UID == ref.UID {
			return rc.UID, ptr.Deref(rc.Spec.Replicas, 1), true
		}
	case placement.KindStatefulSet:
		if set, ok := v.StatefulSets.Get(namespace, ref.Name); ok && set.UID == ref.UID {
			return set.UID, ptr.Deref(set.Spec.Replicas, 1), true
		}
	}
	return "", 0, false
}
