package model

import (
	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// capacityCheck adds up, by itself, what the store has bound to each node. A node is never over-committed, whoever asked at once (D6).
type capacityCheck struct {
	allocatable placement.Resources
	used        map[string]*placement.Resources
}

func newCapacityCheck(allocatable corev1.ResourceList) capacityCheck {
	return capacityCheck{allocatable: placement.ResourcesOf(allocatable), used: map[string]*placement.Resources{}}
}

func (c *capacityCheck) take(pod *corev1.Pod, sign int64) {
	used := c.used[pod.Spec.NodeName]
	if used == nil {
		used = &placement.Resources{}
		c.used[pod.Spec.NodeName] = used
	}
	for _, container := range pod.Spec.Containers {
		requests := container.Resources.Requests
		used.MilliCPU += sign * requests.Cpu().MilliValue()
		used.Memory += sign * requests.Memory().Value()
	}
	used.Pods += sign
}

func (c *capacityCheck) look(m *Model, node string) {
	used, have := c.used[node], c.allocatable
	if used.MilliCPU > have.MilliCPU || used.Memory > have.Memory || used.Pods > have.Pods {
		m.violate(checkerCapacity, "%s has %dm CPU, %d bytes and %d pods bound, and can give %dm, %d and %d",
			node, used.MilliCPU, used.Memory, used.Pods, have.MilliCPU, have.Memory, have.Pods)
	}
}
