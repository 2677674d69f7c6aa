package api

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SetKubernetesEndpoints makes the kubernetes Service lead to the given peers. The meta leader calls it when the set of
// ready peers changes; it writes nothing if nothing changed.
func (s *Server) SetKubernetesEndpoints(ctx context.Context, peers []netip.AddrPort) error {
	ports := map[uint16][]netip.Addr{}
	for _, p := range peers {
		ports[p.Port()] = append(ports[p.Port()], p.Addr().Unmap())
	}
	for _, addresses := range ports {
		slices.SortFunc(addresses, netip.Addr.Compare)
	}
	if err := s.setKubernetesSlices(ctx, ports); err != nil {
		return fmt.Errorf("endpoint slices of the kubernetes Service: %w", err)
	}
	if err := s.setKubernetesEndpoints(ctx, ports); err != nil {
		return fmt.Errorf("endpoints of the kubernetes Service: %w", err)
	}
	return nil
}

// setKubernetesSlices keeps one slice per port, since the ports of a slice hold for all its addresses.
func (s *Server) setKubernetesSlices(ctx context.Context, ports map[uint16][]netip.Addr) error {
	client := s.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	list, err := client.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + KubernetesService})
	if err != nil {
		return err
	}
	have := map[string]*discoveryv1.EndpointSlice{}
	for i := range list.Items {
		have[list.Items[i].Name] = &list.Items[i]
	}
	for port, addresses := range ports {
		want := kubernetesSlice(port, addresses)
		old, exists := have[want.Name]
		delete(have, want.Name)
		switch {
		case !exists:
			_, err = client.Create(ctx, want, metav1.CreateOptions{})
		case !apiequality.Semantic.DeepEqual(old.Endpoints, want.Endpoints):
			old.Endpoints = want.Endpoints
			_, err = client.Update(ctx, old, metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
	for name := range have {
		if err := client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func kubernetesSlice(port uint16, addresses []netip.Addr) *discoveryv1.EndpointSlice {
	name, protocol, number, ready := "https", corev1.ProtocolTCP, int32(port), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%d", KubernetesService, port), Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: KubernetesService},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &number}},
	}
	for _, a := range addresses {
		if a.Is6() {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	return slice
}

// setKubernetesEndpoints keeps the older form of the same: Endpoints are deprecated, but clients from before EndpointSlices
// look for the API there, and kube-apiserver writes them too.
//
//nolint:staticcheck // see above
func (s *Server) setKubernetesEndpoints(ctx context.Context, ports map[uint16][]netip.Addr) error {
	client := s.client.CoreV1().Endpoints(metav1.NamespaceDefault)
	subsets := kubernetesSubsets(ports)
	old, err := client.Get(ctx, KubernetesService, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = client.Create(ctx, &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{
				Name: KubernetesService, Namespace: metav1.NamespaceDefault,
				Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
			},
			Subsets: subsets,
		}, metav1.CreateOptions{})
	case err == nil && !apiequality.Semantic.DeepEqual(old.Subsets, subsets):
		old.Subsets = subsets
		_, err = client.Update(ctx, old, metav1.UpdateOptions{})
	}
	return err
}

//nolint:staticcheck // of Endpoints, see setKubernetesEndpoints
func kubernetesSubsets(ports map[uint16][]netip.Addr) []corev1.EndpointSubset {
	var subsets []corev1.EndpointSubset
	for port, addresses := range ports {
		subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: int32(port)}}}
		for _, a := range addresses {
			subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: a.String()})
		}
		subsets = append(subsets, subset)
	}
	slices.SortFunc(subsets, func(a, b corev1.EndpointSubset) int { return int(a.Ports[0].Port - b.Ports[0].Port) })
	return subsets
}
