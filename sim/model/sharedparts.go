package model

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// What a decoded EndpointSlice or Endpoints repeats of its pods and nodes: with these shared, an address costs a third of the memory, and
// the garbage collector has fewer than half as many objects to visit per pod. Nobody writes into a stored object.
var (
	isTrue, isFalse = ptr.To(true), ptr.To(false)
	kindPod         = "Pod"
)

// shareSlice lets a slice's endpoints share what pods and nodes have already.
func (s *shard) shareSlice(slice *discoveryv1.EndpointSlice) {
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		e.Conditions.Ready, e.Conditions.Serving = sharedBool(e.Conditions.Ready), sharedBool(e.Conditions.Serving)
		e.Conditions.Terminating = sharedBool(e.Conditions.Terminating)
		if n := s.model.byName[ptr.Deref(e.NodeName, "")]; n != nil {
			e.NodeName = &n.name
			if e.Zone != nil && *e.Zone == n.zone {
				e.Zone = &n.zone
			}
		}
		if pod := s.shareTarget(e.TargetRef); pod != nil && len(e.Addresses) == 1 && e.Addresses[0] == pod.Status.PodIP {
			e.Addresses[0] = pod.Status.PodIP
		}
	}
}

// shareEndpoints is shareSlice for the older form.
func (s *shard) shareEndpoints(endpoints *corev1.Endpoints) { //nolint:staticcheck // still written for old clients
	for i := range endpoints.Subsets {
		subset := &endpoints.Subsets[i]
		for _, addresses := range [][]corev1.EndpointAddress{subset.Addresses, subset.NotReadyAddresses} { //nolint:staticcheck // as above
			for k := range addresses {
				address := &addresses[k]
				if n := s.model.byName[ptr.Deref(address.NodeName, "")]; n != nil {
					address.NodeName = &n.name
				}
				if pod := s.shareTarget(address.TargetRef); pod != nil && address.IP == pod.Status.PodIP {
					address.IP = pod.Status.PodIP
				}
			}
		}
	}
}

// shareTarget returns the pod that a reference is to, if it is stored, and lets the reference share its names.
func (s *shard) shareTarget(to *corev1.ObjectReference) *corev1.Pod {
	if to == nil || to.Kind != kindPod {
		return nil
	}
	to.Kind = kindPod
	pod, ok := s.objects[podPrefix+to.Namespace+"/"+to.Name].(*corev1.Pod)
	if !ok || pod.UID != to.UID {
		return nil
	}
	to.Namespace, to.Name, to.UID = pod.Namespace, pod.Name, pod.UID
	return pod
}

// sharedBool is the value of b at an address that all share.
func sharedBool(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return isTrue
	}
	return isFalse
}
