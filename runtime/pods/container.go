package pods

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Labels on containers and sandboxes. The io.kubernetes ones are what other tools look for.
const (
	labelPodUID        = "io.kubernetes.pod.uid"
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelContainerName = "io.kubernetes.container.name"
	labelImageName     = "shoal.dev/image-name"   // the image's first full name
	labelImageDigest   = "shoal.dev/image-digest" // name@sha256:…, or the image ID
	labelMessagePath   = "shoal.dev/message-path" // on the host
)

// restartable reports whether an init container is a sidecar.
func restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// shouldRestart applies the container's restart rules, its restart policy, and the pod's, in this order of strength.
func shouldRestart(pod *corev1.Pod, c *corev1.Container, exitCode int) bool {
	for _, rule := range c.RestartPolicyRules {
		if rule.Action == corev1.ContainerRestartRuleActionRestart && matchesExit(rule.ExitCodes, exitCode) {
			return true
		}
	}
	policy := string(pod.Spec.RestartPolicy)
	if c.RestartPolicy != nil {
		policy = string(*c.RestartPolicy)
	}
	switch policy {
	case string(corev1.RestartPolicyNever):
		return false
	case string(corev1.RestartPolicyOnFailure):
		return exitCode != 0
	}
	return true
}

func matchesExit(on *corev1.ContainerRestartRuleOnExitCodes, code int) bool {
	if on == nil {
		return false
	}
	in := slices.Contains(on.Values, int32(code))
	return in == (on.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn)
}

// initShouldRestart is shouldRestart for an init container that runs to completion: under Always it is tried again after a failure only.
func initShouldRestart(pod *corev1.Pod, c *corev1.Container, exitCode int) bool {
	return exitCode != 0 && shouldRestart(pod, c, exitCode)
}

// graceOf is how long a container may take to stop when it alone is stopped.
func graceOf(pod *corev1.Pod, probe *corev1.Probe) time.Duration {
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		return time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// podGrace is how long the whole pod may take to stop: the deletion's, else its own; at least a second.
func podGrace(pod *corev1.Pod) time.Duration {
	grace := graceOf(pod, nil)
	if pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil {
		grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	}
	return max(grace, time.Second)
}

// allContainers returns pointers to init, regular and ephemeral containers, in this order.
func allContainers(pod *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range pod.Spec.InitContainers {
		out = append(out, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		out = append(out, &c)
	}
	return out
}

// fieldPath is the event field path of a container.
func fieldPath(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return "spec.initContainers{" + name + "}"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return "spec.ephemeralContainers{" + name + "}"
		}
	}
	return "spec.containers{" + name + "}"
}

// started reports whether a running container has passed its postStart hook and startup probe.
func (s *PodState) started(c *corev1.Container, cur *ContainerState) bool {
	if cur == nil || cur.Status != StatusRunning || !s.hooked(c, cur) {
		return false
	}
	return c.StartupProbe == nil || s.Probes[cur.ID].Startup == ProbeSuccess
}

// ready reports whether a started container passes its readiness probe.
func (s *PodState) ready(c *corev1.Container, cur *ContainerState) bool {
	return s.started(c, cur) && (c.ReadinessProbe == nil || s.Probes[cur.ID].Readiness == ProbeSuccess)
}

func (s *PodState) hooked(c *corev1.Container, cur *ContainerState) bool {
	return c.Lifecycle == nil || c.Lifecycle.PostStart == nil || s.Hooked[cur.ID]
}

// latest returns the newest attempt of each container name.
func latest(containers []ContainerState) map[string]*ContainerState {
	out := map[string]*ContainerState{}
	for i := range containers {
		c := &containers[i]
		if have := out[c.Name]; have == nil || c.Attempt > have.Attempt {
			out[c.Name] = c
		}
	}
	return out
}
