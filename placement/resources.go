package placement

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
)

// Requests assumed for scoring when a container names none, so that a node full of such pods
// does not look empty. kube-scheduler uses the same figures.
var (
	assumedCPU    = apiresource.MustParse("100m")
	assumedMemory = apiresource.MustParse("200Mi")
)

// ceiling bounds every single amount (as bytes: 8 PiB), so that no sum over a node's pods can
// overflow and every sum can be taken back exactly.
const ceiling = 1 << 53

// Resources is an amount of everything a node can run out of.
type Resources struct {
	MilliCPU         int64
	Memory           int64 // bytes
	EphemeralStorage int64 // bytes
	Pods             int64
	Scalar           map[corev1.ResourceName]int64 // hugepages and extended resources, in units
}

// Add adds o to r.
func (r *Resources) Add(o Resources) { r.move(o, 1) }

// Sub takes o away from r.
func (r *Resources) Sub(o Resources) { r.move(o, -1) }

func (r *Resources) move(o Resources, sign int64) {
	r.MilliCPU += sign * o.MilliCPU
	r.Memory += sign * o.Memory
	r.EphemeralStorage += sign * o.EphemeralStorage
	r.Pods += sign * o.Pods
	for name, amount := range o.Scalar {
		if r.Scalar == nil {
			r.Scalar = map[corev1.ResourceName]int64{}
		}
		r.Scalar[name] += sign * amount
	}
}

// Plus returns the sum of r and o, sharing nothing with either.
func (r Resources) Plus(o Resources) Resources {
	r.Scalar = maps.Clone(r.Scalar)
	r.Add(o)
	return r
}

// IsZero tells whether nothing but possibly pod slots is asked for.
func (r Resources) IsZero() bool {
	return r.MilliCPU == 0 && r.Memory == 0 && r.EphemeralStorage == 0 && len(r.Scalar) == 0
}

// ResourcesOf turns an API resource list into amounts: negative ones count as zero, absurd ones
// as 2^53.
func ResourcesOf(list corev1.ResourceList) Resources {
	var r Resources
	for name, quantity := range list {
		amount := units(quantity)
		switch name {
		case corev1.ResourceCPU:
			r.MilliCPU = milli(quantity)
		case corev1.ResourceMemory:
			r.Memory = amount
		case corev1.ResourceEphemeralStorage:
			r.EphemeralStorage = amount
		case corev1.ResourcePods:
			r.Pods = amount
		default:
			if amount == 0 {
				continue
			}
			if r.Scalar == nil {
				r.Scalar = map[corev1.ResourceName]int64{}
			}
			r.Scalar[name] = amount
		}
	}
	return r
}

// demand is what a pod takes and what scores see of it; see Pod.
type demand struct {
	requests                     Resources
	scoredMilliCPU, scoredMemory int64
	heldMilliCPU, heldMemory     int64
}

// demandOf works out a pod's demand. Most pods are plain, and for them it is a sum.
func demandOf(pod *corev1.Pod) demand {
	if d, ok := plainDemand(pod); ok {
		return d
	}
	d := demand{requests: Requests(pod)}
	d.scoredMilliCPU, d.scoredMemory = scoredRequests(pod, false)
	d.heldMilliCPU, d.heldMemory = d.scoredMilliCPU, d.scoredMemory
	if resource.IsPodLevelRequestsSet(pod) {
		d.heldMilliCPU, d.heldMemory = scoredRequests(pod, true)
	}
	return d
}

// plainDemand is demandOf for a pod whose demand is the sum over its containers: without init
// containers, overhead, pod-level requests, and resizing in place. It reports false for others.
func plainDemand(pod *corev1.Pod) (d demand, ok bool) {
	if len(pod.Spec.InitContainers) > 0 || len(pod.Spec.Overhead) > 0 || pod.Spec.Resources != nil {
		return d, false
	}
	for i := range pod.Status.ContainerStatuses {
		if status := &pod.Status.ContainerStatuses[i]; status.Resources != nil || len(status.AllocatedResources) > 0 {
			return d, false
		}
	}
	var cpu, memory, scoredCPU, scoredMemory apiresource.Quantity
	for i := range pod.Spec.Containers {
		requests := pod.Spec.Containers[i].Resources.Requests
		for name := range requests {
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory {
				return d, false
			}
		}
		addOr(&cpu, &scoredCPU, requests, corev1.ResourceCPU, assumedCPU)
		addOr(&memory, &scoredMemory, requests, corev1.ResourceMemory, assumedMemory)
	}
	d.requests = Resources{MilliCPU: milli(cpu), Memory: units(memory), Pods: 1}
	d.scoredMilliCPU, d.scoredMemory = milli(scoredCPU), units(scoredMemory)
	d.heldMilliCPU, d.heldMemory = d.scoredMilliCPU, d.scoredMemory
	return d, true
}

func addOr(sum, scored *apiresource.Quantity, requests corev1.ResourceList, name corev1.ResourceName, assumed apiresource.Quantity) {
	amount, ok := requests[name]
	if ok {
		sum.Add(amount)
		scored.Add(amount)
		return
	}
	scored.Add(assumed)
}

// units is a quantity's amount: negative ones count as zero, absurd ones as 2^53. Value and
// MilliValue of those would wrap around.
func units(q apiresource.Quantity) int64 {
	switch {
	case q.Sign() <= 0:
		return 0
	case q.CmpInt64(ceiling) >= 0:
		return ceiling
	default:
		return q.Value()
	}
}

// milli is units in thousandths.
func milli(q apiresource.Quantity) int64 {
	switch {
	case q.Sign() <= 0:
		return 0
	case q.CmpInt64(ceiling/1000) >= 0:
		return ceiling
	default:
		return q.MilliValue()
	}
}

// Requests is what a pod takes from its node: containers, init and sidecar containers, pod-level
// resources and overhead, by the rules of KEP-753 and KEP-2837, and one pod slot.
func Requests(pod *corev1.Pod) Resources {
	r := ResourcesOf(resource.PodRequests(pod, resource.PodResourcesOptions{
		UseStatusResources: pod.Spec.NodeName != "", InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}))
	r.Pods = 1
	return r
}

// scoredRequests is like Requests for CPU and memory, with defaults for containers that name
// none. As upstream has it, pod-level requests count only once a pod is placed, and then defaults
// only for what it requests nowhere.
func scoredRequests(pod *corev1.Pod, placed bool) (milliCPU, memory int64) {
	options := resource.PodResourcesOptions{
		UseStatusResources: pod.Spec.NodeName != "", InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}
	assumed := corev1.ResourceList{corev1.ResourceCPU: assumedCPU, corev1.ResourceMemory: assumedMemory}
	options.SkipPodLevelResources = !placed
	if placed {
		for name := range resource.PodRequests(pod, options) {
			delete(assumed, name)
		}
	}
	options.NonMissingContainerRequests = assumed
	r := ResourcesOf(resource.PodRequests(pod, options))
	return r.MilliCPU, r.Memory
}
