package workload

import (
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

func (r *rollout) timestamp() metav1.Time { return metav1.NewTime(r.now) }

// hasDeadline tells whether lack of progress is to be reported.
func (r *rollout) hasDeadline() bool {
	return r.seen.Spec.ProgressDeadlineSeconds != nil && *r.seen.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// notePause records pausing and resuming, so that the time a Deployment was paused does not
// count as lack of progress.
func (r *rollout) notePause() {
	if !r.hasDeadline() {
		return
	}
	c := conditionOf(&r.want.Status, appsv1.DeploymentProgressing)
	if c != nil && c.Reason == "ProgressDeadlineExceeded" {
		return
	}
	noted := c != nil && c.Reason == "DeploymentPaused"
	switch {
	case r.seen.Spec.Paused && !noted:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !r.seen.Spec.Paused && noted:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

// writeStatus works out the Deployment's status after the plan and adds the write if it differs.
// Annotations travel with the status write: the API's status strategy keeps them, so the revision
// annotation needs no second write and does not move the generation.
func (r *rollout) writeStatus() {
	before := r.seen.Status
	r.sumSets()
	r.setAvailable()
	if r.seen.DeletionTimestamp == nil && !r.seen.Spec.Paused && !r.scaled() {
		r.setProgress(&before)
		r.copyFailure()
	}
	if r.seen.DeletionTimestamp == nil && (r.seen.Spec.Paused || r.complete()) {
		r.dropHistory()
	}
	if apiequality.Semantic.DeepEqual(before, r.want.Status) &&
		apiequality.Semantic.DeepEqual(r.seen.Annotations, r.want.Annotations) {
		return
	}
	r.plan.Add(placement.Updating(placement.UpdateStatus, r.seen, r.want))
}

func (r *rollout) sumSets() {
	s := &r.want.Status
	s.ObservedGeneration = r.seen.Generation
	s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	var terminating int32
	for _, set := range r.sets {
		s.Replicas += set.want.Status.Replicas
		s.ReadyReplicas += set.want.Status.ReadyReplicas
		s.AvailableReplicas += set.want.Status.AvailableReplicas
		terminating += ptr.Deref(set.want.Status.TerminatingReplicas, 0)
		if set == r.current {
			s.UpdatedReplicas = set.want.Status.Replicas
		}
	}
	s.TerminatingReplicas = ptr.To(terminating)
	s.UnavailableReplicas = max(r.totalSize()-s.AvailableReplicas, 0)
}

func (r *rollout) setAvailable() {
	if r.want.Status.AvailableReplicas >= r.minAvailable() {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue,
			"MinimumReplicasAvailable", "Deployment has minimum availability.")
		return
	}
	r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse,
		"MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
}

// complete tells whether all replicas are of the present template and available, and no others are left.
func (r *rollout) complete() bool {
	s := r.want.Status
	return s.UpdatedReplicas == r.size && s.Replicas == r.size && s.AvailableReplicas == r.size
}

// setProgress keeps the Progressing condition, which kubectl rollout status waits for.
func (r *rollout) setProgress(before *appsv1.DeploymentStatus) {
	if !r.hasDeadline() {
		r.dropCondition(appsv1.DeploymentProgressing)
		return
	}
	after := &r.want.Status
	current := conditionOf(after, appsv1.DeploymentProgressing)
	if after.Replicas == after.UpdatedReplicas && current != nil && current.Reason == "NewReplicaSetAvailable" {
		return // an earlier rollout is complete: pods that come and go are not progress
	}
	who := fmt.Sprintf("Deployment %q", r.seen.Name)
	if r.current != nil {
		who = fmt.Sprintf("ReplicaSet %q", r.current.want.Name)
	}
	switch {
	case r.complete():
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable", who+" has successfully progressed.")
	case r.created:
		// "NewReplicaSetCreated" has just been set.
	case progressed(before, after):
		r.noteProgress(current, who+" is progressing.")
	case r.timedOut(current):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ProgressDeadlineExceeded", who+" has timed out progressing.")
	}
	if c := conditionOf(after, appsv1.DeploymentProgressing); c != nil && !r.complete() && c.Reason != "ProgressDeadlineExceeded" {
		// API timestamps are whole seconds: one more, so that the recheck does not come too early.
		r.plan.RecheckAt(c.LastUpdateTime.Add(r.deadline() + time.Second))
	}
}

// noteProgress restarts the deadline. Unlike other conditions this one is written again although
// status and reason stand, because its update time is what the deadline counts from.
func (r *rollout) noteProgress(current *appsv1.DeploymentCondition, message string) {
	since := r.timestamp()
	if current != nil && current.Status == corev1.ConditionTrue {
		since = current.LastTransitionTime
	}
	r.dropCondition(appsv1.DeploymentProgressing)
	r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", message)
	conditionOf(&r.want.Status, appsv1.DeploymentProgressing).LastTransitionTime = since
}

func progressed(before, after *appsv1.DeploymentStatus) bool {
	return after.UpdatedReplicas > before.UpdatedReplicas ||
		after.Replicas-after.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		after.ReadyReplicas > before.ReadyReplicas ||
		after.AvailableReplicas > before.AvailableReplicas
}

func (r *rollout) deadline() time.Duration {
	return time.Duration(*r.seen.Spec.ProgressDeadlineSeconds) * time.Second
}

func (r *rollout) timedOut(c *appsv1.DeploymentCondition) bool {
	if c == nil || c.Reason == "NewReplicaSetAvailable" {
		return false
	}
	return c.Reason == "ProgressDeadlineExceeded" || c.LastUpdateTime.Add(r.deadline()).Before(r.now)
}

// copyFailure shows a ReplicaSet's failure to create or delete pods, the current set's first.
func (r *rollout) copyFailure() {
	sets := r.sets
	if r.current != nil {
		sets = append([]*replicaSet{r.current}, r.sets...)
	}
	for _, set := range sets {
		for _, c := range set.want.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				r.setCondition(appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message)
				return
			}
		}
	}
	r.dropCondition(appsv1.DeploymentReplicaFailure)
}
