package pods

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// tally counts containers by what they are in a status.
type tally struct{ waiting, running, stopped, succeeded, restartable int }

// phaseOf derives the pod phase from the container statuses. stopped says that nothing will be started again whatever the policies say;
// initialised that regular containers have run, so that restarting sidecars do not put the pod back to Pending.
func phaseOf(pod *corev1.Pod, s *corev1.PodStatus, stopped, initialised bool) corev1.PodPhase {
	pendingInit, pendingSidecars, failedInit := initTally(pod, s)
	if failedInit {
		return corev1.PodFailed
	}
	t := regularTally(pod, s)
	sidecarsRun := 0
	for i := range pod.Spec.InitContainers {
		if restartable(&pod.Spec.InitContainers[i]) && s.InitContainerStatuses[i].State.Running != nil {
			sidecarsRun++
		}
	}
	switch {
	case pendingInit > 0, pendingSidecars > 0 && !initialised, t.waiting > 0:
		return corev1.PodPending
	case t.running+sidecarsRun > 0:
		return corev1.PodRunning
	case t.stopped == 0:
		return corev1.PodPending
	case t.restartable > 0 && !stopped:
		return corev1.PodRunning
	case t.stopped == t.succeeded:
		return corev1.PodSucceeded
	}
	return corev1.PodFailed
}

// initTally counts init containers that have yet to do their work. failed: one ended badly and will not be tried again.
func initTally(pod *corev1.Pod, s *corev1.PodStatus) (pending, sidecars int, failed bool) {
	for i := range pod.Spec.InitContainers {
		c, st := &pod.Spec.InitContainers[i], &s.InitContainerStatuses[i]
		end := lastEnd(st)
		switch {
		case restartable(c):
			if st.State.Running != nil && (st.Started == nil || !*st.Started) || st.State.Waiting != nil && end == nil {
				sidecars++
			}
		case end == nil:
			pending++
		case end.ExitCode != 0:
			failed = failed || !initShouldRestart(pod, c, int(end.ExitCode))
			pending++
		case st.State.Terminated == nil:
			pending++
		}
	}
	return pending, sidecars, failed
}

func regularTally(pod *corev1.Pod, s *corev1.PodStatus) tally {
	var t tally
	for i := range pod.Spec.Containers {
		st := &s.ContainerStatuses[i]
		end := lastEnd(st)
		switch {
		case st.State.Running != nil:
			t.running++
		case end == nil:
			t.waiting++
		default:
			t.stopped++
			if end.ExitCode == 0 {
				t.succeeded++
			}
			if shouldRestart(pod, &pod.Spec.Containers[i], int(end.ExitCode)) {
				t.restartable++
			}
		}
	}
	return t
}

// lastEnd is how a container that does not run ended: its state, or the last one when it waits to be started again.
func lastEnd(s *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	if s.State.Running != nil {
		return nil
	}
	return s.LastTerminationState.Terminated
}

// qosClass is the class the API server recorded, or the one that the requests and limits make.
// https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	guaranteed, some := true, false
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := requests[name], limits[name]
		some = some || !request.IsZero() || !limit.IsZero()
		guaranteed = guaranteed && !limit.IsZero() && request.Cmp(limit) == 0 && everyLimited(pod, name)
	}
	switch {
	case guaranteed:
		return corev1.PodQOSGuaranteed
	case some:
		return corev1.PodQOSBurstable
	}
	return corev1.PodQOSBestEffort
}

func everyLimited(pod *corev1.Pod, name corev1.ResourceName) bool {
	if pod.Spec.Resources != nil && !pod.Spec.Resources.Limits.Name(name, "").IsZero() {
		return true
	}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Resources.Limits.Name(name, "").IsZero() {
				return false
			}
		}
	}
	return true
}
