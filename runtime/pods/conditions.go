package pods

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// owned are the condition types that the node writes; all others belong to somebody else and are passed on.
var owned = map[corev1.PodConditionType]bool{
	corev1.PodScheduled: true, corev1.PodReady: true, corev1.PodInitialized: true,
	corev1.ContainersReady: true, corev1.PodReadyToStartContainers: true,
}

// conditions returns foreign conditions of the pod followed by the node's own. lastTransitionTime moves only when the status does.
func (p *planner) conditions(s, old *corev1.PodStatus) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range p.pod.Status.Conditions {
		if !owned[c.Type] {
			out = append(out, c)
		}
	}
	containersReady := p.containersReady(s)
	ready := containersReady
	ready.Type = corev1.PodReady
	if ready.Status == corev1.ConditionTrue {
		ready = gatesReady(p.pod, out)
	}
	for _, c := range []corev1.PodCondition{p.readyToStart(), p.initialized(s), ready, containersReady, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}} {
		c.ObservedGeneration = p.pod.Generation
		c.LastTransitionTime = *stamp(p.now)
		for _, list := range [][]corev1.PodCondition{old.Conditions, p.pod.Status.Conditions} {
			if before := findCondition(list, c.Type); before != nil && before.Status == c.Status {
				c.LastTransitionTime = before.LastTransitionTime
				break
			}
		}
		out = append(out, c)
	}
	return out
}

func findCondition(list []corev1.PodCondition, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == kind {
			return &list[i]
		}
	}
	return nil
}

func (p *planner) readyToStart() corev1.PodCondition {
	if p.state.Sandbox != nil && p.networked() && !p.state.TornDown {
		return corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
}

func (p *planner) initialized(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	var incomplete []string
	for i := range p.pod.Spec.InitContainers {
		st := &s.InitContainerStatuses[i]
		if done := st.Ready; !done && (!restartable(&p.pod.Spec.InitContainers[i]) || st.Started == nil || !*st.Started) {
			incomplete = append(incomplete, st.Name)
		}
	}
	if len(incomplete) > 0 && !regularStarted(s) {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}

// regularStarted reports whether a regular container has run in the pod's life.
func regularStarted(s *corev1.PodStatus) bool {
	for i := range s.ContainerStatuses {
		if st := &s.ContainerStatuses[i]; st.State.Running != nil || lastEnd(st) != nil {
			return true
		}
	}
	return false
}

func (p *planner) containersReady(s *corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionFalse}
	switch s.Phase {
	case corev1.PodSucceeded:
		c.Reason = "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Reason = "PodFailed"
		return c
	}
	var unready []string
	for i := range p.pod.Spec.InitContainers {
		if restartable(&p.pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, s.InitContainerStatuses[i].Name)
		}
	}
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	if len(unready) == 0 {
		c.Status = corev1.ConditionTrue
		return c
	}
	c.Reason, c.Message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
	return c
}

// gatesReady is the Ready condition of a pod whose containers are ready: its readiness gates decide.
func gatesReady(pod *corev1.Pod, foreign []corev1.PodCondition) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		switch have := findCondition(foreign, gate.ConditionType); {
		case have == nil:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case have.Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, have.Status))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(missing, ", ")
	}
	return c
}

// MergeStatus is what to store when the node reports a status and the stored pod has changed meanwhile: the node's report, with the
// stored conditions of other owners, and never out of a terminal phase.
func MergeStatus(stored, reported corev1.PodStatus) corev1.PodStatus {
	out := *reported.DeepCopy()
	out.Conditions = nil
	for _, c := range stored.Conditions {
		if !owned[c.Type] {
			out.Conditions = append(out.Conditions, c)
		}
	}
	for _, c := range reported.Conditions {
		if owned[c.Type] {
			out.Conditions = append(out.Conditions, c)
		}
	}
	if terminal(stored.Phase) {
		out.Phase = stored.Phase
	}
	out.NominatedNodeName, out.ResourceClaimStatuses = stored.NominatedNodeName, stored.ResourceClaimStatuses
	if out.StartTime == nil || stored.StartTime != nil && stored.StartTime.Before(out.StartTime) {
		out.StartTime = stored.StartTime
	}
	if stored.QOSClass != "" {
		out.QOSClass = stored.QOSClass
	}
	return out
}
