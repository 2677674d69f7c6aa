package pods

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Figures of cgroups and of the OOM killer as Kubernetes uses them.
// https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior
const (
	cpuPeriod        = 100_000 // µs
	minQuota         = 1000    // µs
	minShares        = 2
	sharesPerCPU     = 1024
	oomGuaranteed    = -997
	oomBestEffort    = 1000
	criticalPriority = 2_000_000_000
)

// containerResources are the cgroup figures of one container.
func containerResources(pod *corev1.Pod, c *corev1.Container, allocatable corev1.ResourceList) Resources {
	r := cgroupFigures(c.Resources.Requests, c.Resources.Limits)
	r.OOMScoreAdj = oomScore(pod, c, allocatable)
	for name, q := range c.Resources.Limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			if r.HugePages == nil {
				r.HugePages = map[string]uint64{}
			}
			r.HugePages[strings.Replace(size, "i", "B", 1)] = uint64(q.Value()) // hugepages-2Mi → 2MB
		}
	}
	return r
}

// podResources are the figures of the pod's own cgroup. A limit applies only when every container has one.
func podResources(pod *corev1.Pod) Resources {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: false})
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	effective := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if q, ok := limits[name]; ok && everyLimited(pod, name) {
			effective[name] = q
		}
	}
	return cgroupFigures(requests, effective)
}

func cgroupFigures(requests, limits corev1.ResourceList) Resources {
	r := Resources{CPUShares: minShares, Memory: limits.Memory().Value()}
	cpu := requests.Cpu()
	if _, asked := requests[corev1.ResourceCPU]; !asked {
		cpu = limits.Cpu()
	}
	if shares := cpu.MilliValue() * sharesPerCPU / 1000; shares > minShares {
		r.CPUShares = uint64(shares)
	}
	if limit := limits.Cpu().MilliValue(); limit > 0 {
		r.CPUQuota, r.CPUPeriod = max(limit*cpuPeriod/1000, minQuota), cpuPeriod
	}
	return r
}

// oomScore makes containers that use more than they asked for die first.
func oomScore(pod *corev1.Pod, c *corev1.Container, allocatable corev1.ResourceList) int {
	if p := pod.Spec.Priority; p != nil && *p >= criticalPriority {
		return oomGuaranteed
	}
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	capacity := allocatable.Memory().Value()
	if capacity == 0 {
		capacity = resource.NewScaledQuantity(16, resource.Giga).Value()
	}
	score := 1000 - int(1000*c.Resources.Requests.Memory().Value()/capacity)
	return min(max(score, 1000+oomGuaranteed), oomBestEffort-1)
}

// cgroupParent is the pod's cgroup below the Engine's root.
func cgroupParent(pod *corev1.Pod) string {
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return "pod" + string(pod.UID)
	case corev1.PodQOSBestEffort:
		return "besteffort/pod" + string(pod.UID)
	}
	return "burstable/pod" + string(pod.UID)
}
