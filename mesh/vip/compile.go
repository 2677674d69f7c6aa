package vip

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/mesh/services"
)

// Node is what compilation depends on besides the objects.
type Node struct {
	Name string
	Zone string       // topology.kubernetes.io/zone; empty means endpoints' zone hints are ignored
	IPs  []netip.Addr // the node's addresses: where NodePorts and host ports answer

	PodCIDR     netip.Prefix // this node's pods; its first host address is the node's own in the pod network
	ClusterCIDR netip.Prefix // all pods: clients from there, and the nodes, are inside the cluster
	ServiceCIDR netip.Prefix // cluster IPs
}

// HostPort is a pod's port on the node's addresses.
type HostPort struct {
	HostIP   netip.Addr // invalid or 0.0.0.0: all the node's addresses
	Port     uint16
	Protocol corev1.Protocol
	PodIP    netip.Addr
	PodPort  uint16
}

// Compile returns the fronts of one Service on node: cluster IPs, NodePorts, external IPs and load balancer addresses,
// IPv4 only. Headless and ExternalName Services have none. PURE.
//
// The rules for which endpoints count are Kubernetes' own:
// https://kubernetes.io/docs/reference/networking/virtual-ips/ (traffic policies, terminating endpoints, topology).
func Compile(s services.Service, node Node) []Front {
	spec := &s.Service.Spec
	if spec.Type == corev1.ServiceTypeExternalName || spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var fronts []Front
	for i := range spec.Ports {
		fronts = append(fronts, compilePort(s, &spec.Ports[i], node)...)
	}
	return fronts
}

func compilePort(s services.Service, port *corev1.ServicePort, node Node) []Front {
	spec := &s.Service.Spec
	protocol, ok := protocolNumber(port.Protocol)
	if !ok {
		return nil
	}
	candidates := candidatesOf(s.Slices, port, node)
	everywhere := usable(preferNear(candidates, node))
	local := usable(onNode(candidates))
	affinity := affinityOf(spec)

	internal := Front{Targets: everywhere, Affinity: affinity}
	if policy := spec.InternalTrafficPolicy; policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal {
		internal.Targets, internal.DropInside = local, len(local) == 0 && len(everywhere) > 0
	}
	external := Front{Targets: everywhere, Affinity: affinity}
	if spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		external.LocalOutside, external.Local = true, local
	}

	var fronts []Front
	add := func(template Front, addr netip.Addr, port int32) {
		if addr.Is4() && port > 0 && port <= 65535 {
			template.Key = FrontKey{Addr: addr, Protocol: protocol, Port: uint16(port)}
			fronts = append(fronts, template)
		}
	}
	for _, addr := range clusterIPs(spec) {
		add(internal, addr, port.Port)
	}
	for _, addr := range parseAddrs(spec.ExternalIPs) {
		add(external, addr, port.Port)
	}
	guarded := external
	guarded.Sources = sourceRanges(spec)
	for _, addr := range balancerIPs(s.Service) {
		add(guarded, addr, port.Port)
	}
	if port.NodePort != 0 {
		for _, addr := range node.IPs {
			add(external, addr, port.NodePort)
		}
	}
	return fronts
}

// CompileHostPorts returns the fronts of a pod's host ports. PURE.
func CompileHostPorts(ports []HostPort, node Node) []Front {
	var fronts []Front
	for _, p := range ports {
		protocol, ok := protocolNumber(p.Protocol)
		if !ok || !p.PodIP.Is4() {
			continue
		}
		addrs := node.IPs
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			addrs = []netip.Addr{p.HostIP}
		}
		for _, addr := range addrs {
			if addr.Is4() {
				fronts = append(fronts, Front{
					Key:     FrontKey{Addr: addr, Protocol: protocol, Port: p.Port},
					Targets: []netip.AddrPort{netip.AddrPortFrom(p.PodIP, p.PodPort)},
				})
			}
		}
	}
	return fronts
}

// candidate is an endpoint that might serve one port.
type candidate struct {
	target             netip.AddrPort
	ready, terminating bool // terminating: on its way out, but still serving
	local              bool
	hints              *discoveryv1.EndpointHints
}

// candidatesOf collects the endpoints for port that are ready, or serve while they terminate.
func candidatesOf(all []*discoveryv1.EndpointSlice, port *corev1.ServicePort, node Node) []candidate {
	var out []candidate
	for _, slice := range all {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		number, ok := portOf(slice, port)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			c := candidate{
				ready: isTrue(e.Conditions.Ready, true),
				local: e.NodeName != nil && *e.NodeName == node.Name,
				hints: e.Hints,
			}
			c.terminating = !c.ready && isTrue(e.Conditions.Serving, false) && isTrue(e.Conditions.Terminating, false)
			if len(e.Addresses) == 0 || !c.ready && !c.terminating {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0]) // further ones are deprecated by the API
			if err != nil || !addr.Is4() {
				continue
			}
			c.target = netip.AddrPortFrom(addr, number)
			out = append(out, c)
		}
	}
	return out
}

// portOf finds the number behind a Service's port: names match, as the endpoints' controller resolved targetPort.
func portOf(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) (uint16, bool) {
	for _, p := range slice.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		same := name == port.Name && (protocol == port.Protocol || port.Protocol == "" && protocol == corev1.ProtocolTCP)
		if same && p.Port != nil && *p.Port > 0 && *p.Port <= 65535 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

// usable returns the ready targets, or, if there are none, those that terminate but still serve.
func usable(candidates []candidate) []netip.AddrPort {
	var ready, terminating []netip.AddrPort
	for _, c := range candidates {
		if c.ready {
			ready = append(ready, c.target)
		} else {
			terminating = append(terminating, c.target)
		}
	}
	if len(ready) == 0 {
		return sortTargets(terminating)
	}
	return sortTargets(ready)
}

func onNode(candidates []candidate) []candidate {
	var out []candidate
	for _, c := range candidates {
		if c.local {
			out = append(out, c)
		}
	}
	return out
}

// preferNear follows the hints of the EndpointSlices: those for this node first, else those for its zone. Hints count
// only when every ready endpoint has one and at least one is meant for us; otherwise all endpoints serve.
func preferNear(candidates []candidate, node Node) []candidate {
	near := func(meant func(*discoveryv1.EndpointHints) (hinted, ours bool)) []candidate {
		var out []candidate
		for _, c := range candidates {
			if !c.ready {
				continue
			}
			if c.hints == nil {
				return nil
			}
			hinted, ours := meant(c.hints)
			if !hinted {
				return nil
			}
			if ours {
				out = append(out, c)
			}
		}
		return out
	}
	if out := near(func(h *discoveryv1.EndpointHints) (hinted, ours bool) {
		for _, n := range h.ForNodes {
			ours = ours || n.Name == node.Name
		}
		return len(h.ForNodes) > 0, ours
	}); len(out) > 0 {
		return out
	}
	if node.Zone == "" {
		return candidates
	}
	if out := near(func(h *discoveryv1.EndpointHints) (hinted, ours bool) {
		for _, z := range h.ForZones {
			ours = ours || z.Name == node.Zone
		}
		return len(h.ForZones) > 0, ours
	}); len(out) > 0 {
		return out
	}
	return candidates
}

func affinityOf(spec *corev1.ServiceSpec) time.Duration {
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

func clusterIPs(spec *corev1.ServiceSpec) []netip.Addr {
	texts := spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{spec.ClusterIP}
	}
	return parseAddrs(texts)
}

// balancerIPs are the addresses that a load balancer leaves for the nodes to answer.
func balancerIPs(s *corev1.Service) []netip.Addr {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var texts []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, in.IP)
		}
	}
	return parseAddrs(texts)
}

// sourceRanges are disjoint: the kernel's set of ranges takes no overlaps. Ranges of which none is IPv4 admit nobody.
func sourceRanges(spec *corev1.ServiceSpec) []netip.Prefix {
	if len(spec.LoadBalancerSourceRanges) == 0 {
		return nil
	}
	var all []netip.Prefix
	for _, text := range spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && p.Addr().Is4() {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare) // a range comes before all that lie within it
	var out []netip.Prefix
	for _, p := range all {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return []netip.Prefix{nobody}
	}
	return out
}

// nobody is a range from which no packet comes (RFC 6890).
var nobody = netip.MustParsePrefix("240.0.0.0/32")

// parseAddrs skips what is not an address: validation has seen the objects, a foreign family is not ours to serve.
func parseAddrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is4() {
			out = append(out, addr)
		}
	}
	return out
}

func protocolNumber(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

func isTrue(b *bool, absent bool) bool {
	if b == nil {
		return absent
	}
	return *b
}

// Gateway is the node's own address in the pod network.
func (n Node) Gateway() netip.Addr { return n.PodCIDR.Masked().Addr().Next() }

func (n Node) check() error {
	for what, p := range map[string]netip.Prefix{
		"pod range": n.PodCIDR, "cluster range": n.ClusterCIDR, "service range": n.ServiceCIDR,
	} {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("%s %q is not an IPv4 range", what, p)
		}
	}
	if n.Name == "" {
		return fmt.Errorf("the node has no name")
	}
	if n.PodCIDR.Bits() < 20 {
		return fmt.Errorf("pod range %s is too large: at most /20 per node", n.PodCIDR)
	}
	return nil
}
