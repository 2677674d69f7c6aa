package endpoints

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const (
	// endpointsManagedBy keeps upstream's mirroring controller from making slices out of these
	// Endpoints again.
	endpointsManagedBy  = "endpoints.kubernetes.io/managed-by"
	endpointsController = "endpoint-controller"
	// maxAddresses is how many addresses an Endpoints object may have; more are cut off and the
	// object says so in an annotation.
	maxAddresses = 1000
)

// planEndpoints makes the service's Endpoints object true. Only clients that do not know slices
// still read it.
func (p *planner) planEndpoints() {
	want := &corev1.Endpoints{} //nolint:staticcheck // served for old clients
	seen, exists := p.view.Endpoints.Get(p.service.Namespace, p.service.Name)
	if exists {
		*want = *seen // subsets are made anew; the maps that change are copied
		want.Annotations = maps.Clone(seen.Annotations)
	}
	want.Name, want.Namespace = p.service.Name, p.service.Namespace
	subsets, cut := p.subsets()
	want.Subsets = subsets
	want.Labels = maps.Clone(p.service.Labels)
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	delete(want.Labels, corev1.IsHeadlessService)
	if headless(p.service) {
		want.Labels[corev1.IsHeadlessService] = ""
	}
	want.Labels[endpointsManagedBy] = endpointsController
	delete(want.Annotations, corev1.EndpointsOverCapacity)
	if cut {
		if want.Annotations == nil {
			want.Annotations = map[string]string{}
		}
		want.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	}
	switch {
	case !exists:
		p.plan.Add(placement.Change{Verb: placement.Create, Object: want})
	case !maps.Equal(seen.Labels, want.Labels) || !maps.Equal(seen.Annotations, want.Annotations) || !sameSubsets(seen.Subsets, want.Subsets):
		p.plan.Add(placement.Updating(placement.Update, seen, want.DeepCopy()))
	}
}

// subsets groups the backends by their ports; addresses are of the service's first family.
func (p *planner) subsets() (subsets []corev1.EndpointSubset, cut bool) { //nolint:staticcheck // see planEndpoints
	family := p.families()[0]
	index := map[string]int{}
	references := make([]corev1.ObjectReference, len(p.backends))
	left := maxAddresses
	// Ready addresses come first, so that cutting off takes others.
	for _, ready := range []bool{true, false} {
		for i := range p.backends {
			b := &p.backends[i]
			publish := p.service.Spec.PublishNotReadyAddresses
			addresses := b.addresses(family)
			ports, key := p.slicePorts(b)
			if (publish || b.ready) != ready || b.terminating && !publish || len(addresses) == 0 ||
				len(ports) == 0 && (len(p.service.Spec.Ports) > 0 || !headless(p.service)) {
				continue
			}
			if left == 0 {
				cut = true
				continue
			}
			left--
			at, ok := index[key]
			if !ok {
				at = len(subsets)
				index[key] = at
				subsets = append(subsets, corev1.EndpointSubset{Ports: p.subsetPorts(b)}) //nolint:staticcheck // see planEndpoints
			}
			references[i] = b.reference()
			address := corev1.EndpointAddress{ //nolint:staticcheck // see planEndpoints
				IP: addresses[0], Hostname: p.hostname(b), NodeName: &b.pod.Spec.NodeName, TargetRef: &references[i],
			}
			if ready {
				subsets[at].Addresses = append(subsets[at].Addresses, address)
			} else {
				subsets[at].NotReadyAddresses = append(subsets[at].NotReadyAddresses, address)
			}
		}
	}
	sortSubsets(subsets)
	return subsets, cut
}

// sameSubsets compares without reflection what there is much of: the addresses.
func sameSubsets(a, b []corev1.EndpointSubset) bool { //nolint:staticcheck // see planEndpoints
	same := func(a, b corev1.EndpointAddress) bool { //nolint:staticcheck // see planEndpoints
		return a.IP == b.IP && a.Hostname == b.Hostname && ptr.Equal(a.NodeName, b.NodeName) && ptr.Equal(a.TargetRef, b.TargetRef)
	}
	return slices.EqualFunc(a, b, func(a, b corev1.EndpointSubset) bool { //nolint:staticcheck // see planEndpoints
		return apiequality.Semantic.DeepEqual(a.Ports, b.Ports) && slices.EqualFunc(a.Addresses, b.Addresses, same) &&
			slices.EqualFunc(a.NotReadyAddresses, b.NotReadyAddresses, same)
	})
}

func (p *planner) subsetPorts(b *backend) []corev1.EndpointPort { //nolint:staticcheck // see planEndpoints
	var ports []corev1.EndpointPort //nolint:staticcheck // see planEndpoints
	for _, found := range p.ports(b) {
		ports = append(ports, corev1.EndpointPort{ //nolint:staticcheck // see planEndpoints
			Name: found.service.Name, Port: found.number,
			Protocol: cmp.Or(found.service.Protocol, corev1.ProtocolTCP), AppProtocol: found.service.AppProtocol,
		})
	}
	return ports
}

// sortSubsets orders addresses and subsets, so that equal states give equal objects.
func sortSubsets(subsets []corev1.EndpointSubset) { //nolint:staticcheck // see planEndpoints
	byIP := func(a, b corev1.EndpointAddress) int { return cmp.Compare(a.IP, b.IP) } //nolint:staticcheck // see planEndpoints
	first := func(s corev1.EndpointSubset) string {                                  //nolint:staticcheck // see planEndpoints
		if len(s.Addresses) > 0 {
			return s.Addresses[0].IP
		}
		return s.NotReadyAddresses[0].IP
	}
	for i := range subsets {
		slices.SortFunc(subsets[i].Addresses, byIP)
		slices.SortFunc(subsets[i].NotReadyAddresses, byIP)
	}
	slices.SortFunc(subsets, func(a, b corev1.EndpointSubset) int { return cmp.Compare(first(a), first(b)) }) //nolint:staticcheck // see planEndpoints
}
