// Package endpoints turns services and pods into EndpointSlices and Endpoints.
//
// A pod leaves the answer the moment its node is lost, before anything is done about the pod
// itself: that is what keeps a service answering while a dead node is being repaired. Slices are
// changed as little as possible, because every peer watches every slice: an endpoint stays in its
// slice, and a change touches the fewest slices that can hold it.
package endpoints

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// maxPerSlice is how many endpoints a slice holds; upstream's default, so that a change of one
// endpoint stays a small object.
const maxPerSlice = 100

// managedBy marks slices as ours. It is the name of the controller whose work this is, because
// tools look for it.
const managedBy = "endpointslice-controller.k8s.io"

// Plan returns the smallest change that makes the slices and Endpoints of a service true. If the
// service is gone, what is left of it goes too. Of services without a selector hand-made Endpoints
// are mirrored, and nothing else is touched; so for ExternalName services. The view must know all
// nodes: pods on unknown ones count as lost.
func Plan(v *placement.View, service types.NamespacedName, now time.Time) placement.Plan {
	var plan placement.Plan
	svc, ok := v.Services.Get(service.Namespace, service.Name)
	if !ok {
		removeAll(v, service, &plan)
		return plan
	}
	planMirror(v, svc, &plan)
	if svc.Spec.Selector == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return plan
	}
	p := &planner{view: v, service: svc, plan: &plan}
	p.findBackends()
	p.planSlices(now)
	p.planEndpoints()
	return plan
}

// removeAll deletes our slices and the Endpoints of a service that is gone.
func removeAll(v *placement.View, service types.NamespacedName, plan *placement.Plan) {
	for _, s := range v.EndpointSlices.In(service.Namespace) {
		if by := s.Labels[discoveryv1.LabelManagedBy]; s.Labels[discoveryv1.LabelServiceName] == service.Name && (by == managedBy || by == mirroredBy) {
			plan.Add(placement.Change{Verb: placement.Delete, Object: s, UID: s.UID})
		}
	}
	if e, ok := v.Endpoints.Get(service.Namespace, service.Name); ok && e.Labels[endpointsManagedBy] == endpointsController {
		plan.Add(placement.Change{Verb: placement.Delete, Object: e, UID: e.UID})
	}
}

// planner works on one service.
type planner struct {
	view     *placement.View
	service  *corev1.Service
	plan     *placement.Plan
	backends []backend // by pod name
	// hinted are the zones that topology-aware hints name, by the pods' UIDs; of one address type, while its slices are planned.
	hinted map[types.UID]string

	samePorts    []discoveryv1.EndpointPort // see slicePorts; nil if pods may differ
	samePortsKey string
}

// backend is a pod that the service leads to.
type backend struct {
	pod         *corev1.Pod
	node        *corev1.Node
	ready       bool // its Ready condition is true and its node is
	terminating bool
	// at are its addresses of one type, which slices and Endpoints ask for.
	family discoveryv1.AddressType
	at     []string
}

func (p *planner) findBackends() {
	if len(p.service.Spec.Selector) == 0 {
		return
	}
	p.view.EachPodIn(p.service.Namespace, func(pod *placement.Pod) {
		o := pod.Object
		if placement.Finished(o) || o.Spec.NodeName == "" || o.Status.PodIP == "" && len(o.Status.PodIPs) == 0 ||
			!p.selects(o) {
			return
		}
		node, ok := p.view.Node(o.Spec.NodeName)
		if !ok || node.Lost() {
			return
		}
		p.backends = append(p.backends, backend{
			pod: o, node: node.Object,
			ready:       placement.Ready(o) && node.Ready() != corev1.ConditionFalse,
			terminating: o.DeletionTimestamp != nil,
		})
	})
	slices.SortFunc(p.backends, func(a, b backend) int { return cmp.Compare(a.pod.Name, b.pod.Name) })
}

// selects tells whether a pod has the labels that the service asks for.
func (p *planner) selects(pod *corev1.Pod) bool {
	for name, value := range p.service.Spec.Selector {
		if has, ok := pod.Labels[name]; !ok || has != value {
			return false
		}
	}
	return true
}

// families are the address types the service wants, from its IP families.
func (p *planner) families() []discoveryv1.AddressType {
	var types []discoveryv1.AddressType
	for _, family := range p.service.Spec.IPFamilies {
		switch family {
		case corev1.IPv4Protocol:
			types = append(types, discoveryv1.AddressTypeIPv4)
		case corev1.IPv6Protocol:
			types = append(types, discoveryv1.AddressTypeIPv6)
		}
	}
	if len(types) > 0 {
		return types
	}
	if ip, err := netip.ParseAddr(p.service.Spec.ClusterIP); err == nil && ip.Is6() {
		return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv6}
	}
	return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
}

// addresses are a backend's addresses of one type, in canonical form. They are shared.
func (b *backend) addresses(family discoveryv1.AddressType) []string {
	if b.family != family {
		b.family, b.at = family, addressesOf(b.pod, family)
	}
	return b.at
}

func addressesOf(pod *corev1.Pod, family discoveryv1.AddressType) []string {
	ips := pod.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	var addresses []string
	for _, ip := range ips {
		address, err := netip.ParseAddr(ip.IP)
		if err == nil && address.Is6() == (family == discoveryv1.AddressTypeIPv6) {
			addresses = append(addresses, canonical(address, ip.IP))
		}
	}
	return addresses
}

// canonical is an address's canonical form, which its text mostly is.
func canonical(address netip.Addr, text string) string {
	var buffer [48]byte
	if string(address.AppendTo(buffer[:0])) == text {
		return text
	}
	return address.String()
}

// headless tells whether the service has no virtual IP.
func headless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone
}

// hostname is the backend's own name under a headless service's, "" without one.
func (p *planner) hostname(b *backend) string {
	if b.pod.Spec.Subdomain == p.service.Name {
		return b.pod.Spec.Hostname
	}
	return ""
}

// endpoint is a backend as one slice shows it.
func (p *planner) endpoint(b *backend, addresses []string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses: addresses,
		Conditions: discoveryv1.EndpointConditions{
			Ready: ptr.To(p.leadsTo(b)), Serving: ptr.To(b.ready), Terminating: ptr.To(b.terminating),
		},
		TargetRef: ptr.To(b.reference()),
		NodeName:  ptr.To(b.pod.Spec.NodeName),
		Hints:     p.hints(b),
	}
	if zone := b.zone(); zone != "" {
		e.Zone = &zone
	}
	if name := p.hostname(b); name != "" {
		e.Hostname = &name
	}
	return e
}

// shows tells whether an endpoint with the backend's identity is what endpoint would make of it.
func (p *planner) shows(e *discoveryv1.Endpoint, b *backend) bool {
	is := func(have *bool, want bool) bool { return have != nil && *have == want }
	same := func(have *string, want string) bool {
		return ptr.Deref(have, "") == want && (have == nil) == (want == "")
	}
	return is(e.Conditions.Ready, p.leadsTo(b)) && is(e.Conditions.Serving, b.ready) && is(e.Conditions.Terminating, b.terminating) &&
		e.TargetRef != nil && *e.TargetRef == b.reference() && e.NodeName != nil && *e.NodeName == b.pod.Spec.NodeName &&
		same(e.Zone, b.zone()) && same(e.Hostname, p.hostname(b)) && len(e.DeprecatedTopology) == 0 &&
		sameHints(e.Hints, p.hints(b))
}

// sameHints compares hints, which mostly are none on both sides.
func sameHints(a, b *discoveryv1.EndpointHints) bool {
	return a == b || a != nil && b != nil && apiequality.Semantic.DeepEqual(a, b)
}

// leadsTo tells whether a backend's endpoint says that it is ready.
func (p *planner) leadsTo(b *backend) bool {
	return p.service.Spec.PublishNotReadyAddresses || b.ready && !b.terminating
}

func (b *backend) zone() string { return b.node.Labels[corev1.LabelTopologyZone] }

// hints say who should use an endpoint, where the service wants its traffic to stay near: KEP-4444 and KEP-3015.
func (p *planner) hints(b *backend) *discoveryv1.EndpointHints {
	if zone := p.hinted[b.pod.UID]; zone != "" {
		return &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	}
	distribution := trafficDistribution(p.service)
	if distribution == "" || !p.leadsTo(b) {
		return nil
	}
	var h discoveryv1.EndpointHints
	switch distribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		h.ForNodes = []discoveryv1.ForNode{{Name: b.pod.Spec.NodeName}}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if zone := b.zone(); zone != "" {
		h.ForZones = []discoveryv1.ForZone{{Name: zone}}
	} else if h.ForNodes == nil {
		return nil
	}
	return &h
}

func (b *backend) reference() corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Pod", Namespace: b.pod.Namespace, Name: b.pod.Name, UID: b.pod.UID}
}

// port is a service port as one pod answers it.
type port struct {
	service *corev1.ServicePort
	number  int32
}

// ports are the service's ports on a backend, without named ports that the pod does not have.
func (p *planner) ports(b *backend) []port {
	var ports []port
	for i := range p.service.Spec.Ports {
		sp := &p.service.Spec.Ports[i]
		if number, ok := targetPort(b.pod, sp); ok {
			ports = append(ports, port{sp, number})
		}
	}
	return ports
}

func targetPort(pod *corev1.Pod, sp *corev1.ServicePort) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		return cmp.Or(sp.TargetPort.IntVal, sp.Port), true
	}
	find := func(ports []corev1.ContainerPort) (int32, bool) {
		for _, cp := range ports {
			if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == cmp.Or(sp.Protocol, corev1.ProtocolTCP) {
				return cp.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range pod.Spec.Containers {
		if n, ok := find(pod.Spec.Containers[i].Ports); ok {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n, ok := find(c.Ports); ok {
			return n, true
		}
	}
	return 0, false
}
