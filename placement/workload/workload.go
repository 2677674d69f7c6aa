// Package workload turns workload objects and the pods they own into changes: what Kubernetes'
// controllers of these kinds do, as pure functions of a view and a time.
//
// Plan is the one way in: it takes what placement.View.TakeDirty has named, or what an earlier plan
// asked to be asked again (placement.Plan.Recheck), and returns the changes, which commit as one
// transaction. A plan is one step; its own changes make the object dirty again, so that steps follow
// until nothing is left to do.
//
// One pass plans everything below an object. A new Deployment yields its ReplicaSet, that set's
// pods and the Deployment's status in one Plan, which commits as one transaction; statuses
// describe the state after that transaction. Conditions, reasons, messages, annotations and
// events are upstream's (k8s.io/kubernetes v1.37), because kubectl rollout and people read them.
package workload

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// Plan plans whatever ref names. Kinds that this package does not decide, and objects that are
// gone, give an empty plan.
func Plan(v *placement.View, ref placement.Ref, now time.Time) placement.Plan {
	switch ref.Kind {
	case placement.KindDeployment:
		return planNamed(v, &v.Deployments, PlanDeployment, ref, now)
	case placement.KindReplicaSet:
		return planNamed(v, &v.ReplicaSets, PlanReplicaSet, ref, now)
	case placement.KindReplicationController:
		return planNamed(v, &v.Replication, PlanReplicationController, ref, now)
	case placement.KindStatefulSet:
		return planNamed(v, &v.StatefulSets, PlanStatefulSet, ref, now)
	case placement.KindDaemonSet:
		return planNamed(v, &v.DaemonSets, PlanDaemonSet, ref, now)
	case placement.KindBudget:
		return planNamed(v, &v.Budgets, PlanBudget, ref, now)
	case placement.KindCronJob:
		return planNamed(v, &v.CronJobs, PlanCronJob, ref, now)
	case placement.KindJob:
		return planJobRef(v, ref.NamespacedName, now)
	default:
		return placement.Plan{}
	}
}

// planNamed plans the object of a table that ref names.
func planNamed[T placement.Object](
	v *placement.View, objects *placement.Table[T], plan func(*placement.View, T, time.Time) placement.Plan, ref placement.Ref, now time.Time,
) placement.Plan {
	if o, ok := objects.Get(ref.Namespace, ref.Name); ok {
		return plan(v, o, now)
	}
	return placement.Plan{}
}

var (
	deploymentKind  = appsv1.SchemeGroupVersion.WithKind("Deployment")
	replicaSetKind  = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
	cronJobKind     = batchv1.SchemeGroupVersion.WithKind("CronJob")
	daemonSetKind   = appsv1.SchemeGroupVersion.WithKind("DaemonSet")
	jobKind         = batchv1.SchemeGroupVersion.WithKind("Job")
	statefulSetKind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")
	replicationKind = corev1.SchemeGroupVersion.WithKind("ReplicationController")
)
