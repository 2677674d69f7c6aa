package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

const (
	// mirroredBy marks slices that mirror hand-made Endpoints, by the name of upstream's controller.
	mirroredBy = "endpointslicemirroring-controller.k8s.io"
	// maxMirrored is how many addresses of a subset are mirrored; upstream's default.
	maxMirrored = 1000
	// leaderElection marks Endpoints that are no endpoints but a lock.
	leaderElection = "control-plane.alpha.kubernetes.io/leader"
)

// planMirror makes slices of the Endpoints that somebody has written for a Service without a selector: what reads only slices, the data
// plane and DNS among it, finds them by that.
// https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#endpointslice-mirroring
func planMirror(v *placement.View, svc *corev1.Service, plan *placement.Plan) {
	e, ok := v.Endpoints.Get(svc.Namespace, svc.Name)
	ok = ok && svc.Spec.Selector == nil && e.DeletionTimestamp == nil && e.Labels[discoveryv1.LabelSkipMirror] != "true" &&
		e.Labels[endpointsManagedBy] != endpointsController && !metav1.HasAnnotation(e.ObjectMeta, leaderElection)
	var present []*discoveryv1.EndpointSlice
	for _, s := range v.EndpointSlices.In(svc.Namespace) {
		if s.Labels[discoveryv1.LabelServiceName] != svc.Name || s.Labels[discoveryv1.LabelManagedBy] != mirroredBy || s.DeletionTimestamp != nil {
			continue
		}
		if ok && metav1.IsControlledBy(s, e) {
			present = append(present, s)
			continue
		}
		plan.Add(placement.Change{Verb: placement.Delete, Object: s, UID: s.UID}) // of Endpoints that are gone
	}
	if !ok {
		return
	}
	m := &mirror{view: v, endpoints: e, plan: plan, present: present}
	m.names = placement.NewNames(string(e.UID), "slices", e.ResourceVersion)
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		for _, g := range m.groups(family) {
			for chunk := range slices.Chunk(g.endpoints, maxPerSlice) {
				m.write(family, g.ports, chunk)
			}
		}
	}
	for _, s := range m.present {
		plan.Add(placement.Change{Verb: placement.Delete, Object: s, UID: s.UID})
	}
	m.tellSkipped()
}

// mirror is one Endpoints object being mirrored.
type mirror struct {
	view      *placement.View
	endpoints *corev1.Endpoints //nolint:staticcheck // what is mirrored
	plan      *placement.Plan
	present   []*discoveryv1.EndpointSlice // that have not been used yet
	names     *placement.Names
}

// mirrorGroup is what may share slices: addresses of one type with the same ports.
type mirrorGroup struct {
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// groups are the Endpoints' addresses of one type. Subsets with the same ports are one.
func (m *mirror) groups(family discoveryv1.AddressType) []mirrorGroup {
	index := map[string]int{}
	known := map[string]int{} // where in its group an endpoint stands, by group and endpoint
	var groups []mirrorGroup
	for i := range m.endpoints.Subsets {
		subset := &m.endpoints.Subsets[i]
		ports := []discoveryv1.EndpointPort{}
		for j := range subset.Ports {
			port := subset.Ports[j]
			port.Protocol = cmp.Or(port.Protocol, corev1.ProtocolTCP)
			ports = append(ports, discoveryv1.EndpointPort{Name: &port.Name, Port: &port.Port, Protocol: &port.Protocol, AppProtocol: port.AppProtocol})
		}
		key := portsKey(ports)
		at, ok := index[key]
		if !ok {
			at = len(groups)
			index[key] = at
			groups = append(groups, mirrorGroup{ports: ports})
		}
		for n, address := range slices.Concat(subset.Addresses, subset.NotReadyAddresses) {
			endpoint, of, ok := mirroredEndpoint(&address, n < len(subset.Addresses))
			if !ok || of != family || n >= maxMirrored {
				continue
			}
			g, name := &groups[at], fmt.Sprintf("%d %s", at, endpoint.Addresses[0])
			if endpoint.TargetRef != nil {
				name += " " + string(endpoint.TargetRef.UID)
			}
			if before, twice := known[name]; !twice {
				known[name] = len(g.endpoints)
				g.endpoints = append(g.endpoints, endpoint)
			} else if *endpoint.Conditions.Ready {
				g.endpoints[before] = endpoint // what one subset calls ready is ready
			}
		}
	}
	return groups
}

// write makes a slice say this: one with the same ports if there is one, else any that is left, else a new one.
func (m *mirror) write(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort, endpoints []discoveryv1.Endpoint) {
	ofFamily := func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == family }
	at := slices.IndexFunc(m.present, func(s *discoveryv1.EndpointSlice) bool {
		return ofFamily(s) && apiequality.Semantic.DeepEqual(s.Ports, ports)
	})
	if at < 0 {
		at = slices.IndexFunc(m.present, ofFamily)
	}
	want := &discoveryv1.EndpointSlice{AddressType: family}
	if at >= 0 {
		want = m.present[at].DeepCopy()
	}
	want.Ports, want.Endpoints = ports, slices.Clone(endpoints)
	want.Labels = maps.Clone(m.endpoints.Labels)
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	want.Labels[discoveryv1.LabelServiceName], want.Labels[discoveryv1.LabelManagedBy] = m.endpoints.Name, mirroredBy
	want.Annotations = maps.Clone(m.endpoints.Annotations)
	maps.DeleteFunc(want.Annotations, func(key, _ string) bool {
		return key == corev1.EndpointsLastChangeTriggerTime || key == corev1.LastAppliedConfigAnnotation
	})
	if at >= 0 {
		seen := m.present[at]
		m.present = slices.Delete(m.present, at, at+1)
		if !apiequality.Semantic.DeepEqual(seen, want) {
			m.plan.Add(placement.Updating(placement.Update, seen, want))
		}
		return
	}
	want.Namespace, want.GenerateName = m.endpoints.Namespace, m.endpoints.Name+"-"
	want.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(m.endpoints, corev1.SchemeGroupVersion.WithKind("Endpoints"))}
	for want.Name == "" {
		name := want.GenerateName + m.names.Suffix()
		if _, taken := m.view.EndpointSlices.Get(want.Namespace, name); !taken {
			want.Name = name
		}
	}
	m.plan.Add(placement.Change{Verb: placement.Create, Object: want})
}

// mirroredEndpoint is an address as a slice shows it; false if it is none.
func mirroredEndpoint(address *corev1.EndpointAddress, ready bool) (discoveryv1.Endpoint, discoveryv1.AddressType, bool) { //nolint:staticcheck // see planEndpoints
	ip, err := netip.ParseAddr(address.IP)
	if err != nil {
		return discoveryv1.Endpoint{}, "", false
	}
	family := discoveryv1.AddressTypeIPv4
	if ip = ip.Unmap(); ip.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	endpoint := discoveryv1.Endpoint{
		Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: address.TargetRef, NodeName: address.NodeName,
	}
	if address.Hostname != "" {
		endpoint.Hostname = &address.Hostname
	}
	return endpoint, family, true
}

// tellSkipped says how many addresses are not mirrored, and why.
func (m *mirror) tellSkipped() {
	invalid, skipped := 0, 0
	for i := range m.endpoints.Subsets {
		subset := &m.endpoints.Subsets[i]
		for _, address := range slices.Concat(subset.Addresses, subset.NotReadyAddresses) {
			if _, _, ok := mirroredEndpoint(&address, true); !ok {
				invalid++
			}
		}
		skipped += max(0, len(subset.Addresses)+len(subset.NotReadyAddresses)-maxMirrored)
	}
	tell := func(reason, message string) {
		m.plan.Events = append(m.plan.Events, placement.Event{
			Regarding: m.endpoints, Type: corev1.EventTypeWarning, Reason: reason, Message: message, Component: "endpoint-slice-mirroring-controller",
		})
	}
	if invalid > 0 {
		tell("InvalidIPAddress", fmt.Sprintf("Skipped %d invalid IP addresses when mirroring to EndpointSlices", invalid))
	}
	if skipped > 0 {
		tell("TooManyAddressesToMirror", fmt.Sprintf(
			"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxMirrored, skipped))
	}
}
