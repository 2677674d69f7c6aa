// Package workload turns workload objects and the pods they own into changes.
package workload

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"shoal/placement"
)

// PlanDeployment plans a Deployment, its ReplicaSets and their pods in one pass.
func PlanDeployment(v *placement.View, d *appsv1.Deployment, now time.Time) placement.Plan {
	return placement.Plan{}
}

// PlanReplicaSet plans a ReplicaSet that no Deployment controls.
func PlanReplicaSet(v *placement.View, rs *appsv1.ReplicaSet, now time.Time) placement.Plan {
	return placement.Plan{}
}

// Plan plans whatever ref names; kinds this package does not decide give an empty plan.
func Plan(v *placement.View, ref placement.Ref, now time.Time) placement.Plan {
	return placement.Plan{}
}
