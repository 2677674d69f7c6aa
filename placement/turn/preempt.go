package turn

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
	"shoal/placement/schedule"
)

// explain says in the pod's condition and in an event why it has no node, once per reason, and keeps its nomination true. Where others make
// room for it, it deletes them: each by a plan of its own, since they may belong to other namespaces.
func (l *Leader) explain(decision schedule.Decision, now time.Time) []Piece {
	pod, message := decision.Pod, decision.Unschedulable.Message
	nominated := pod.Status.NominatedNodeName
	switch {
	case decision.Preempt != nil:
		nominated = decision.Preempt.Node
	case decision.Withdraw:
		nominated = ""
	}
	work := l.victims(decision, now)
	key := keyOf(pod)
	if l.told[key] == message && nominated == pod.Status.NominatedNodeName {
		return work
	}
	l.told[key] = message
	want := pod.DeepCopy()
	want.Status.NominatedNodeName = nominated
	setUnschedulable(&want.Status, message, now)
	change := placement.Updating(placement.UpdateStatus, pod, want, placement.Event{
		Regarding: pod, Type: corev1.EventTypeWarning, Reason: "FailedScheduling", Message: message, Component: schedulerComponent,
	})
	return append(work, Piece{podRef(pod), placement.Plan{Changes: []placement.Change{change}}})
}

// victims makes room by preemption: its victims go with their own grace periods, and pods that were nominated to the room before are not any
// more. All of it is repeated until the pod is placed; what is on its way already is left alone.
func (l *Leader) victims(decision schedule.Decision, now time.Time) []Piece {
	if decision.Preempt == nil {
		return nil
	}
	pod, ref := decision.Pod, podRef(decision.Pod)
	var work []Piece
	for _, victim := range decision.Preempt.Victims {
		if victim.DeletionTimestamp != nil {
			continue
		}
		work = append(work, Piece{ref, placement.Plan{Changes: []placement.Change{{
			Verb: placement.Delete, Object: victim, UID: victim.UID,
			Disruption: placement.Disrupted(corev1.PodReasonPreemptionByScheduler,
				schedulerComponent+": preempting to accommodate a higher priority pod", now),
			Events: []placement.Event{{
				Regarding: victim, Type: corev1.EventTypeNormal, Reason: "Preempted", Component: schedulerComponent,
				Message: fmt.Sprintf("Preempted by pod %s on node %s", pod.UID, decision.Preempt.Node),
			}},
		}}}})
		if _, own := l.view.Pod(victim.Namespace, victim.Name); !own {
			l.recheck(ref, now.Add(refreshUsage)) // nobody tells this leader when it has gone
		}
	}
	for _, displaced := range decision.Preempt.Displaced {
		want := displaced.DeepCopy()
		want.Status.NominatedNodeName = ""
		work = append(work, Piece{podRef(displaced), placement.Plan{Changes: []placement.Change{
			placement.Updating(placement.UpdateStatus, displaced, want),
		}}})
	}
	return work
}

func setUnschedulable(status *corev1.PodStatus, message string, now time.Time) {
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message,
		LastTransitionTime: metav1.NewTime(now),
	}
	for i, have := range status.Conditions {
		if have.Type == corev1.PodScheduled {
			if have.Status == condition.Status {
				condition.LastTransitionTime = have.LastTransitionTime
			}
			status.Conditions[i] = condition
			return
		}
	}
	status.Conditions = append(status.Conditions, condition)
}
