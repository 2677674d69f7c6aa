package pods

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
)

// Consumer is what a pod's containers use, in bytes, of a resource that a node is short of.
type Consumer struct {
	Pod        *corev1.Pod
	Containers map[string]int64
}

func (c Consumer) used() int64 {
	var sum int64
	for _, used := range c.Containers {
		sum += used
	}
	return sum
}

// RankForEviction orders the pods that may be evicted from a node under pressure, those first that have to go first: pods that use more than
// they requested, then those of lower priority, then those that exceed their request most.
// https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#pod-selection-for-kubelet-eviction
func RankForEviction(consumers []Consumer, name corev1.ResourceName) []Consumer {
	var ranked []Consumer
	for _, c := range consumers {
		_, mirror := c.Pod.Annotations[corev1.MirrorPodAnnotationKey]
		if !mirror && corev1helpers.PodPriority(c.Pod) < criticalPriority && c.Pod.DeletionTimestamp == nil && !terminal(c.Pod.Status.Phase) {
			ranked = append(ranked, c)
		}
	}
	excess := func(c Consumer) int64 { return c.used() - requestOf(c.Pod, name) }
	within := func(c Consumer) int {
		if excess(c) > 0 {
			return 0
		}
		return 1
	}
	slices.SortFunc(ranked, func(a, b Consumer) int {
		return cmp.Or(cmp.Compare(within(a), within(b)), cmp.Compare(corev1helpers.PodPriority(a.Pod), corev1helpers.PodPriority(b.Pod)),
			cmp.Compare(excess(b), excess(a)), cmp.Compare(a.Pod.UID, b.Pod.UID))
	})
	return ranked
}

func requestOf(pod *corev1.Pod, name corev1.ResourceName) int64 {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	amount := requests[name]
	return amount.Value()
}

// EvictionMessage is what the kubelet says to a pod that it evicts.
func EvictionMessage(c Consumer, name corev1.ResourceName) string {
	var text strings.Builder
	fmt.Fprintf(&text, "The node was low on resource: %s. ", name)
	for i := range c.Pod.Spec.Containers {
		container := &c.Pod.Spec.Containers[i]
		request := container.Resources.Requests[name]
		if used := c.Containers[container.Name]; used > request.Value() {
			fmt.Fprintf(&text, "Container %s was using %s, request is %s, has larger consumption of %s. ",
				container.Name, resource.NewQuantity(used, resource.BinarySI), request.String(), name)
		}
	}
	return text.String()
}

// Evict ends a pod of this node for good, though nobody deleted it. It is false if there is no such pod.
func (a *Agent) Evict(uid types.UID, message string) bool {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w == nil {
		return false
	}
	w.update(func(s *PodState) {
		if s.Evicted == nil {
			s.Evicted = &End{Reason: "Evicted", Message: message}
		}
	})
	return true
}

// UnusedImages are those that no pod names or runs, the largest first.
func UnusedImages(images []Image, pods []*corev1.Pod) []Image {
	used := map[string]bool{}
	for _, pod := range pods {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				used[list[i].Image] = true
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			used[pod.Spec.EphemeralContainers[i].Image] = true
		}
		for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
			for i := range list {
				used[list[i].Image], used[list[i].ImageID] = true, true
			}
		}
		for i := range pod.Spec.Volumes {
			if image := pod.Spec.Volumes[i].Image; image != nil {
				used[image.Reference] = true
			}
		}
	}
	var unused []Image
	for _, image := range images {
		names := append(slices.Concat(image.Names, image.Digests), image.ID)
		if !slices.ContainsFunc(names, func(name string) bool { return named(used, name) }) {
			unused = append(unused, image)
		}
	}
	slices.SortFunc(unused, func(a, b Image) int { return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.ID, b.ID)) })
	return unused
}

// named tells whether a full name stands among names that users may have written short: nginx for docker.io/library/nginx:latest.
func named(used map[string]bool, name string) bool {
	short := strings.TrimPrefix(name, "docker.io/")
	for _, form := range []string{name, short, strings.TrimPrefix(short, "library/")} {
		if used[form] || used[strings.TrimSuffix(form, ":latest")] {
			return true
		}
	}
	return false
}
