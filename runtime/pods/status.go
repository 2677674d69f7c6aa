package pods

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerIDPrefix stands before container IDs in statuses.
const containerIDPrefix = "containerd://"

// lostMessage and exitUnknown describe a container that was running and is not there any more.
const (
	lostReason  = "ContainerStatusUnknown"
	lostMessage = "The container could not be located when the pod was terminated"
	exitUnknown = 137
)

// status computes the pod's status from what is there, what was reported before and why containers wait.
func (p *planner) status() corev1.PodStatus {
	old := &p.rec.Status
	if old.Phase == "" {
		old = &p.pod.Status
	}
	var s corev1.PodStatus
	s.ObservedGeneration = p.pod.Generation
	s.StartTime = stamp(p.startTime())
	s.QOSClass = qosClass(p.pod)
	s.NominatedNodeName = p.pod.Status.NominatedNodeName
	s.ResourceClaimStatuses = p.pod.Status.ResourceClaimStatuses
	p.addresses(&s, old)

	hasInit := len(p.pod.Spec.InitContainers) > 0
	for i := range p.pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, p.containerStatus(&p.pod.Spec.InitContainers[i], hasInit))
	}
	for i := range p.pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, p.containerStatus(&p.pod.Spec.Containers[i], hasInit))
	}
	for i := range p.pod.Spec.EphemeralContainers {
		c := corev1.Container(p.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, p.containerStatus(&c, false))
	}
	if p.stopped {
		settleStopped(&s)
	}
	p.setPhase(&s, old)
	if p.stopped && terminal(s.Phase) {
		dropReady(s.InitContainerStatuses, p.pod.Spec.InitContainers)
		dropReady(s.ContainerStatuses, nil)
	}
	s.Conditions = p.conditions(&s, old)
	return s
}

// setPhase sets phase, reason and message. A terminal phase is never left.
func (p *planner) setPhase(s, old *corev1.PodStatus) {
	s.Phase = phaseOf(p.pod, s, p.stopped, p.regularRan())
	for _, before := range []corev1.PodPhase{p.pod.Status.Phase, old.Phase} {
		if terminal(before) {
			s.Phase = before
		}
	}
	if p.stopped && !terminal(s.Phase) && (p.pod.DeletionTimestamp != nil || p.state.Removed) {
		s.Phase = corev1.PodFailed // ended before it ran
	}
	if s.Phase == old.Phase {
		s.Reason, s.Message = old.Reason, old.Message
	}
	if p.rec.End != nil {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, p.rec.End.Reason, p.rec.End.Message
	}
}

func (p *planner) addresses(s, old *corev1.PodStatus) {
	s.HostIP, s.HostIPs = old.HostIP, old.HostIPs
	if len(p.state.HostIPs) > 0 {
		s.HostIP, s.HostIPs = p.state.HostIPs[0].String(), nil
		for _, ip := range p.state.HostIPs {
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
		}
	}
	ips := p.state.IPs
	if p.pod.Spec.HostNetwork {
		ips = p.state.HostIPs
	}
	if len(ips) == 0 && (p.ending || len(p.latest) > 0) {
		s.PodIP, s.PodIPs = old.PodIP, old.PodIPs
		return
	}
	s.PodIP, s.PodIPs = podIPs(ips)
}

func podIPs(ips []netip.Addr) (first string, all []corev1.PodIP) {
	for _, ip := range ips {
		all = append(all, corev1.PodIP{IP: ip.String()})
	}
	if len(all) > 0 {
		first = all[0].IP
	}
	return first, all
}

// oldStatus is the status last reported of a container: by this node, else as the API has it.
func (p *planner) oldStatus(name string) *corev1.ContainerStatus {
	for _, s := range []*corev1.PodStatus{&p.rec.Status, &p.pod.Status} {
		for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
			for i := range list {
				if list[i].Name == name {
					return &list[i]
				}
			}
		}
	}
	return nil
}

// containerStatus is one container's status as the kubelet words it.
func (p *planner) containerStatus(c *corev1.Container, podInitialises bool) corev1.ContainerStatus {
	old, cur := p.oldStatus(c.Name), p.latest[c.Name]
	s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, VolumeMounts: mountStatuses(c)}
	if old != nil {
		s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
	}
	switch {
	case cur == nil || cur.Status == StatusCreated:
		p.absentStatus(&s, old, podInitialises)
	default:
		p.presentStatus(&s, old, c, cur)
	}
	if why := p.waiting[c.Name]; why != nil && s.State.Running == nil {
		if s.State.Terminated != nil {
			s.LastTerminationState = s.State
		}
		s.State = corev1.ContainerState{Waiting: why}
	}
	started := p.state.started(c, cur)
	s.Started = &started
	s.Ready = p.state.ready(c, cur)
	if isInit(p.pod, c.Name) && !restartable(c) {
		s.Ready = s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	}
	return s
}

// absentStatus fills the status of a container of which nothing exists: it waits, it is over and was removed, or it was lost.
func (p *planner) absentStatus(s, old *corev1.ContainerStatus, podInitialises bool) {
	switch {
	case old != nil && old.State.Terminated != nil:
		s.State, s.Image, s.ImageID, s.ContainerID = old.State, old.Image, old.ImageID, old.ContainerID
		s.Resources, s.AllocatedResources = old.Resources, old.AllocatedResources
		return
	case old != nil && old.State.Running != nil:
		s.LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: lostReason, Message: lostMessage, ExitCode: exitUnknown, ContainerID: old.ContainerID, StartedAt: old.State.Running.StartedAt,
		}}
		if p.pod.DeletionTimestamp == nil {
			s.RestartCount++
		}
	}
	s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if podInitialises {
		s.State.Waiting.Reason = "PodInitializing"
	}
}

// presentStatus fills the status of a container that runs or has run.
func (p *planner) presentStatus(s, old *corev1.ContainerStatus, c *corev1.Container, cur *ContainerState) {
	s.ContainerID = containerIDPrefix + cur.ID
	s.RestartCount = int32(cur.Attempt)
	s.Image, s.ImageID = cur.Labels[labelImageName], cur.Labels[labelImageDigest]
	if s.Image == "" {
		s.Image = cur.Image
	}
	if s.ImageID == "" {
		s.ImageID = cur.ImageID
	}
	s.AllocatedResources = c.Resources.Requests
	s.Resources = c.Resources.DeepCopy()
	if old != nil && old.ContainerID != s.ContainerID && old.State.Terminated != nil {
		s.LastTerminationState = old.State
	} else if before := p.previous(cur); before != nil && s.LastTerminationState.Terminated == nil {
		s.LastTerminationState = corev1.ContainerState{Terminated: p.termination(before)}
	}
	if cur.Status == StatusRunning {
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: *stamp(cur.StartedAt)}
		return
	}
	s.State.Terminated = p.termination(cur)
}

// previous is the attempt before cur, when it still exists and has ended.
func (p *planner) previous(cur *ContainerState) *ContainerState {
	for i := range p.state.Containers {
		if c := &p.state.Containers[i]; c.Name == cur.Name && c.Attempt == cur.Attempt-1 && c.Status == StatusExited {
			return c
		}
	}
	return nil
}

func (p *planner) termination(c *ContainerState) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(c.ExitCode), Reason: "Error", Message: p.state.Messages[c.ID], ContainerID: containerIDPrefix + c.ID,
		StartedAt: *stamp(c.StartedAt), FinishedAt: *stamp(c.FinishedAt),
	}
	switch {
	case c.OOMKilled:
		t.Reason = "OOMKilled"
	case c.Message != "":
		t.Reason, t.Message = reasonStartError, c.Message
	case c.ExitCode == 0:
		t.Reason = "Completed"
	}
	return t
}

// settleStopped gives containers of a pod that ended while they waited their last state: what they last were, or unknown.
func settleStopped(s *corev1.PodStatus) {
	var ran bool
	for _, c := range s.ContainerStatuses {
		ran = ran || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
	}
	for i := range s.ContainerStatuses {
		c := &s.ContainerStatuses[i]
		switch {
		case c.State.Terminated != nil || !ran:
		case c.LastTerminationState.Terminated != nil:
			c.State, c.LastTerminationState = c.LastTerminationState, corev1.ContainerState{}
		default:
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: lostReason, Message: lostMessage, ExitCode: exitUnknown}}
		}
	}
}

// dropReady clears ready and started of containers that will not run again; completed init containers stay ready.
func dropReady(list []corev1.ContainerStatus, init []corev1.Container) {
	no := false
	for i := range list {
		if i < len(init) && !restartable(&init[i]) {
			continue
		}
		list[i].Ready, list[i].Started = false, &no
	}
}

func isInit(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	return false
}

func mountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursiveReadOnly(m) {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// recursiveReadOnly reports whether a mount is read-only all the way down; every supported runtime can do it.
func recursiveReadOnly(m corev1.VolumeMount) bool {
	return m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

// stamp is a time as the API keeps it: whole seconds, UTC.
func stamp(t time.Time) *metav1.Time {
	s := metav1.NewTime(t.UTC().Truncate(time.Second))
	if t.IsZero() {
		s = metav1.Time{}
	}
	return &s
}
