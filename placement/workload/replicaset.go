package workload

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const (
	replicaSetComponent  = "replicaset-controller"
	replicationComponent = "replication-controller"
)

// PlanReplicaSet plans a ReplicaSet's pods and status. Sets that a Deployment controls are
// planned by PlanDeployment.
func PlanReplicaSet(v *placement.View, rs *appsv1.ReplicaSet, now time.Time) placement.Plan {
	var plan placement.Plan
	pods := newReplicaSetPods(rs)
	pods.claimPods(v, &plan)
	pods.scale(v, &plan, pods.active, now)
	status := replicaSetStatus(v, rs, pods, &plan, now)
	if !apiequality.Semantic.DeepEqual(status, rs.Status) {
		want := rs.DeepCopy()
		want.Status = status
		plan.Add(placement.Updating(placement.UpdateStatus, rs, want))
	}
	return plan
}

func newReplicaSetPods(rs *appsv1.ReplicaSet) *replicas {
	return &replicas{
		owner:           newOwner(rs, replicaSetKind, rs.Spec.Selector),
		account:         rs.UID,
		template:        &rs.Spec.Template,
		want:            ptr.Deref(rs.Spec.Replicas, 1),
		minReadySeconds: rs.Spec.MinReadySeconds,
		component:       replicaSetComponent,
	}
}

// replicaSetStatus is the status after the plan. Conditions of other kinds are kept.
func replicaSetStatus(v *placement.View, rs *appsv1.ReplicaSet, pods *replicas, plan *placement.Plan, now time.Time) appsv1.ReplicaSetStatus {
	t := pods.count(plan, now)
	return appsv1.ReplicaSetStatus{
		Replicas:             t.replicas,
		FullyLabeledReplicas: t.fullyLabeled,
		ReadyReplicas:        t.ready,
		AvailableReplicas:    t.available,
		TerminatingReplicas:  ptr.To(t.terminating),
		ObservedGeneration:   rs.Generation,
		Conditions:           replicaSetConditions(rs, pods.failure(v), pods.failureReason(), now),
	}
}

func replicaSetConditions(rs *appsv1.ReplicaSet, failure, reason string, now time.Time) []appsv1.ReplicaSetCondition {
	return withFailure(rs.Status.Conditions, failure, appsv1.ReplicaSetCondition{
		Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: failure,
	}, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure })
}

// PlanReplicationController plans a ReplicationController's pods and status.
func PlanReplicationController(v *placement.View, rc *corev1.ReplicationController, now time.Time) placement.Plan {
	var plan placement.Plan
	template := rc.Spec.Template
	if template == nil {
		template = &corev1.PodTemplateSpec{}
	}
	pods := &replicas{
		owner:           newOwner(rc, replicationKind, &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}),
		account:         rc.UID,
		template:        template,
		want:            ptr.Deref(rc.Spec.Replicas, 1),
		minReadySeconds: rc.Spec.MinReadySeconds,
		component:       replicationComponent,
	}
	pods.claimPods(v, &plan)
	pods.scale(v, &plan, pods.active, now)
	t := pods.count(&plan, now)
	status := corev1.ReplicationControllerStatus{
		Replicas:             t.replicas,
		FullyLabeledReplicas: t.fullyLabeled,
		ReadyReplicas:        t.ready,
		AvailableReplicas:    t.available,
		ObservedGeneration:   rc.Generation,
		Conditions:           replicationConditions(rc, pods.failure(v), pods.failureReason(), now),
	}
	if !apiequality.Semantic.DeepEqual(status, rc.Status) {
		want := rc.DeepCopy()
		want.Status = status
		plan.Add(placement.Updating(placement.UpdateStatus, rc, want))
	}
	return plan
}

func replicationConditions(rc *corev1.ReplicationController, failure, reason string, now time.Time) []corev1.ReplicationControllerCondition {
	return withFailure(rc.Status.Conditions, failure, corev1.ReplicationControllerCondition{
		Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: failure,
	}, func(c corev1.ReplicationControllerCondition) bool {
		return c.Type == corev1.ReplicationControllerReplicaFailure
	})
}
