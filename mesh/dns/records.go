package dns

import (
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/mesh/services"
)

// TTL of every record, seconds.
const TTL = 5

// schemaVersion is that of the specification followed here:
// https://github.com/kubernetes/dns/blob/master/docs/specification.md
const schemaVersion = "1.1.0"

// Names returns what one Service is called in domain (fully qualified, "cluster.local."). PURE.
func Names(s services.Service, domain string) []Name {
	b := &builder{names: map[string]int{}, domain: domain}
	b.service = strings.ToLower(s.Service.Name + "." + s.Service.Namespace + ".svc." + domain)
	b.exists(b.service)
	switch spec := &s.Service.Spec; {
	case spec.Type == corev1.ServiceTypeExternalName:
		if target := dns.Fqdn(strings.ToLower(spec.ExternalName)); dns.IsFqdn(target) && validName(target) {
			b.add(b.service, &dns.CNAME{Hdr: header(b.service, dns.TypeCNAME), Target: target})
		}
	case spec.ClusterIP == corev1.ClusterIPNone:
		b.headless(s)
	default:
		b.clusterIP(spec)
	}
	return b.out
}

// builder collects records by name, in the order of their appearance.
type builder struct {
	domain, service string
	names           map[string]int
	out             []Name
}

func (b *builder) exists(name string) int {
	at, ok := b.names[name]
	if !ok {
		at = len(b.out)
		b.names[name] = at
		b.out = append(b.out, Name{Name: name})
	}
	return at
}

func (b *builder) add(name string, rr dns.RR) {
	at := b.exists(name)
	for _, have := range b.out[at].Records {
		if dns.IsDuplicate(have, rr) {
			return
		}
	}
	b.out[at].Records = append(b.out[at].Records, rr)
}

func (b *builder) clusterIP(spec *corev1.ServiceSpec) {
	addrs := spec.ClusterIPs
	if len(addrs) == 0 {
		addrs = []string{spec.ClusterIP}
	}
	for _, text := range addrs {
		if addr, err := netip.ParseAddr(text); err == nil {
			b.address(b.service, addr)
			b.pointer(addr, b.service)
		}
	}
	for _, p := range spec.Ports {
		b.srv(p.Name, p.Protocol, p.Port, b.service)
	}
}

// headless: the Service's name means all its ready endpoints, each of which also has a name of its own.
func (b *builder) headless(s services.Service) {
	for _, slice := range s.Slices {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if !ready && !s.Service.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, text := range e.Addresses {
				if addr, err := netip.ParseAddr(text); err == nil {
					b.endpoint(slice, e, addr)
				}
			}
		}
	}
}

func (b *builder) endpoint(slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, addr netip.Addr) {
	own := endpointLabel(e, addr) + "." + b.service
	b.address(b.service, addr)
	b.address(own, addr)
	b.pointer(addr, own)
	for _, p := range slice.Ports {
		if p.Name == nil || p.Port == nil {
			continue
		}
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		b.srv(*p.Name, protocol, *p.Port, own)
	}
}

// endpointLabel is the pod's hostname where it has one (StatefulSets), else its address with dashes.
func endpointLabel(e *discoveryv1.Endpoint, addr netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())
}

func (b *builder) address(name string, addr netip.Addr) {
	if addr.Is4() {
		b.add(name, &dns.A{Hdr: header(name, dns.TypeA), A: net.IP(addr.AsSlice())})
	} else {
		b.add(name, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: net.IP(addr.AsSlice())})
	}
}

func (b *builder) pointer(addr netip.Addr, to string) {
	name, err := dns.ReverseAddr(addr.String())
	if err != nil { // an address that just parsed always has one
		return
	}
	b.add(name, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: to})
}

// srv makes _port._protocol.service; ports without a name have none.
func (b *builder) srv(port string, protocol corev1.Protocol, number int32, target string) {
	if port == "" {
		return
	}
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	name := strings.ToLower("_" + port + "._" + string(protocol) + "." + b.service)
	b.add(name, &dns.SRV{
		Hdr: header(name, dns.TypeSRV), Priority: 0, Weight: 100, Port: uint16(number), Target: target,
	})
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: TTL}
}

func validName(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok
}

// fixed are the names that stand whatever Services exist.
func fixed(domain string) []Name {
	version := "dns-version." + domain
	return []Name{
		{Name: domain, Records: []dns.RR{soa(domain)}},
		{Name: "svc." + domain},
		{Name: "pod." + domain},
		{Name: version, Records: []dns.RR{&dns.TXT{Hdr: header(version, dns.TypeTXT), Txt: []string{schemaVersion}}}},
	}
}

// soa is the start of authority: what resolvers take the lifetime of a "no" from.
func soa(domain string) *dns.SOA {
	return &dns.SOA{
		Hdr: header(domain, dns.TypeSOA), Ns: "ns.dns." + domain, Mbox: "hostmaster." + domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: TTL,
	}
}

// podAddress answers names like 10-32-1-7.default.pod.cluster.local: the address is in the name.
func podAddress(name, domain string) (netip.Addr, bool) {
	rest, ok := strings.CutSuffix(name, ".pod."+domain)
	if !ok {
		return netip.Addr{}, false
	}
	label, namespace, ok := strings.Cut(rest, ".")
	if !ok || namespace == "" || strings.Contains(namespace, ".") {
		return netip.Addr{}, false
	}
	if addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil && addr.Is4() {
		return addr, true
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return addr, err == nil
}
