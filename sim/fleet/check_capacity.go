package fleet

import corev1 "k8s.io/api/core/v1"

// capacity holds that the store never binds more to a node than it can give.
func (r *run) capacity(p picture) {
	for _, node := range p.nodes {
		r.checkNode(node, p.pods)
	}
}

func (r *run) checkNode(node corev1.Node, pods []corev1.Pod) {
	memory, count := int64(0), int64(0)
	for _, pod := range pods {
		if pod.Spec.NodeName == node.Name && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			memory += pod.Spec.Containers[0].Resources.Requests.Memory().Value()
			count++
		}
	}
	if memory > node.Status.Allocatable.Memory().Value() || count > node.Status.Allocatable.Pods().Value() {
		r.blame("capacity", "%s holds %d pods with %d bytes, and can give %s and %s", node.Name, count, memory,
			node.Status.Allocatable.Pods(), node.Status.Allocatable.Memory())
	}
}
