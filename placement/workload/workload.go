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
		if d, ok := v.Deployments.Get(ref.Namespace, ref.Name); ok {
			return PlanDeployment(v, d, now)
		}
	case placement.KindReplicaSet:
		if rs, ok := v.ReplicaSets.Get(ref.Namespace, ref.Name); ok {
			return PlanReplicaSet(v, rs, now)
		}
	case placement.KindReplicationController:
		if rc, ok := v.Replication.Get(ref.Namespace, ref.Name); ok {
			return PlanReplicationController(v, rc, now)
		}
	case placement.KindStatefulSet:
		if set, ok := v.StatefulSets.Get(ref.Namespace, ref.Name); ok {
			return PlanStatefulSet(v, set, now)
		}
	case placement.KindDaemonSet:
		if set, ok := v.DaemonSets.Get(ref.Namespace, ref.Name); ok {
			return PlanDaemonSet(v, set, now)
		}
	case placement.KindBudget:
		if b, ok := v.Budgets.Get(ref.Namespace, ref.Name); ok {
			return PlanBudget(v, b, now)
		}
	case placement.KindCronJob:
		if o, ok := v.CronJobs.Get(ref.Namespace, ref.Name); ok {
			return PlanCronJob(v, o, now)
		}
	case placement.KindJob:
		return planJobRef(v, ref.NamespacedName, now)
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
