package vip

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/mesh/services"
)

func testNode() Node {
	return Node{
		Name: "n1", Zone: "east", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDR: netip.MustParsePrefix("10.32.7.0/24"), ClusterCIDR: netip.MustParsePrefix("10.32.0.0/12"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
	}
}

func pointer[T any](v T) *T { return &v }

// service makes a Service with one port, 80 → 8080/TCP, at 10.96.0.10.
func service(change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	s.Spec = corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
		Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func slice(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: pointer("http"), Port: pointer(int32(8080)), Protocol: pointer(corev1.ProtocolTCP)}},
		Endpoints:   endpoints,
	}
}

func endpoint(addr, node string, change func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
	if change != nil {
		change(&e)
	}
	return e
}

func unready(e *discoveryv1.Endpoint) { e.Conditions.Ready = pointer(false) }

func terminating(e *discoveryv1.Endpoint) {
	e.Conditions = discoveryv1.EndpointConditions{Ready: pointer(false), Serving: pointer(true), Terminating: pointer(true)}
}

func hinted(zones ...string) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) {
		e.Hints = &discoveryv1.EndpointHints{}
		for _, z := range zones {
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
}

// describe says what clients of a Service meet, by way of Memory.
func describe(t *testing.T, s *corev1.Service, client string, slices ...*discoveryv1.EndpointSlice) string {
	t.Helper()
	memory := &Memory{}
	proxy, err := Open(t.Context(), Config{Node: testNode(), Ruleset: memory})
	if err != nil {
		t.Fatal(err)
	}
	batch := services.Batch{Services: []*corev1.Service{s}, Slices: slices, Full: true}
	if err := proxy.Sync(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, addr := range []string{"10.96.0.10:80", "192.0.2.1:30080", "198.51.100.7:80"} {
		at := netip.MustParseAddrPort(addr)
		fate, targets := memory.Lookup(netip.MustParseAddr(client), FrontKey{at.Addr(), TCP, at.Port()})
		switch fate {
		case Passed:
			out = append(out, "-")
		case Refused:
			out = append(out, "refused")
		case Dropped:
			out = append(out, "dropped")
		case Sent:
			var last []string
			for _, target := range targets {
				last = append(last, fmt.Sprint(target.Addr().AsSlice()[3]))
			}
			out = append(out, strings.Join(last, ","))
		}
	}
	return strings.Join(out, " ")
}

// Each case says what a client meets at the cluster IP, the NodePort and the external IP: the last bytes of the
// targets' addresses, or its fate.
func TestWhoAnswers(t *testing.T) {
	const inside, outside = "10.33.0.9", "203.0.113.5"
	everywhere := func(s *corev1.ServiceSpec) {
		s.Type, s.Ports[0].NodePort, s.ExternalIPs = corev1.ServiceTypeNodePort, 30080, []string{"198.51.100.7"}
	}
	both := func(changes ...func(*corev1.ServiceSpec)) func(*corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) {
			for _, change := range changes {
				change(s)
			}
		}
	}
	externalLocal := func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	internalLocal := func(s *corev1.ServiceSpec) {
		s.InternalTrafficPolicy = pointer(corev1.ServiceInternalTrafficPolicyLocal)
	}
	here, there := endpoint("10.32.7.2", "n1", nil), endpoint("10.32.8.3", "n2", nil)
	for _, c := range []struct {
		name, client, want string
		change             func(*corev1.ServiceSpec)
		endpoints          []discoveryv1.Endpoint
	}{
		{"cluster IP", inside, "2,3 - -", nil, []discoveryv1.Endpoint{here, there}},
		{"no endpoints", inside, "refused refused refused", everywhere, nil},
		{"only unready", inside, "refused refused refused", everywhere, []discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", unready)}},
		{"unready left out", inside, "3 3 3", everywhere, []discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", unready), there}},
		{"terminating only while none is ready", inside, "3 3 3", everywhere,
			[]discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", terminating), there}},
		{"terminating as a last resort", inside, "2 2 2", everywhere,
			[]discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", terminating), endpoint("10.32.8.3", "n2", unready)}},
		{"from outside", outside, "2,3 2,3 2,3", everywhere, []discoveryv1.Endpoint{here, there}},
		{"external policy Local from outside", outside, "2,3 2 2", both(everywhere, externalLocal), []discoveryv1.Endpoint{here, there}},
		{"external policy Local from inside", inside, "2,3 2,3 2,3", both(everywhere, externalLocal), []discoveryv1.Endpoint{here, there}},
		{"external policy Local, none here", outside, "3 dropped dropped", both(everywhere, externalLocal), []discoveryv1.Endpoint{there}},
		{"external policy Local, none here, from inside", inside, "3 3 3", both(everywhere, externalLocal), []discoveryv1.Endpoint{there}},
		{"external policy Local, none at all", outside, "refused refused refused", both(everywhere, externalLocal), nil},
		{"external policy Local keeps the terminating here", outside, "3 2 2", both(everywhere, externalLocal),
			[]discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", terminating), there}},
		{"internal policy Local", inside, "2 2,3 2,3", both(everywhere, internalLocal), []discoveryv1.Endpoint{here, there}},
		{"internal policy Local, none here", inside, "dropped 3 3", both(everywhere, internalLocal), []discoveryv1.Endpoint{there}},
		{"zone hints", inside, "2 - -", nil, []discoveryv1.Endpoint{
			endpoint("10.32.7.2", "n1", hinted("east")), endpoint("10.32.8.3", "n2", hinted("west"))}},
		{"zone hints for others only", inside, "2,3 - -", nil, []discoveryv1.Endpoint{
			endpoint("10.32.7.2", "n1", hinted("west")), endpoint("10.32.8.3", "n2", hinted("west"))}},
		{"zone hints incomplete", inside, "2,3 - -", nil, []discoveryv1.Endpoint{endpoint("10.32.7.2", "n1", hinted("east")), there}},
		{"headless", inside, "refused - -", func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "None", []string{"None"} },
			[]discoveryv1.Endpoint{here}},
		{"external name", inside, "refused - -", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName },
			[]discoveryv1.Endpoint{here}},
		{"one endpoint twice", inside, "2 - -", nil, []discoveryv1.Endpoint{here, here}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := describe(t, service(c.change), c.client, slice(c.endpoints...)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestLoadBalancerAddresses(t *testing.T) {
	s := service(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeLoadBalancer })
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "198.51.100.7"}, {IP: "198.51.100.8", IPMode: pointer(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
	}
	var addrs []string
	for _, f := range Compile(services.Service{Service: s, Slices: []*discoveryv1.EndpointSlice{slice()}}, testNode()) {
		addrs = append(addrs, f.Key.String())
	}
	if want := []string{"10.96.0.10:80/tcp", "198.51.100.7:80/tcp"}; !slices.Equal(addrs, want) {
		t.Errorf("got %v, want %v", addrs, want)
	}
}

func TestCompileSurvivesOddObjects(t *testing.T) {
	odd := slice(discoveryv1.Endpoint{}, discoveryv1.Endpoint{Addresses: []string{"not an address"}},
		discoveryv1.Endpoint{Addresses: []string{"fd00::1"}})
	odd.Ports = append(odd.Ports, discoveryv1.EndpointPort{}, discoveryv1.EndpointPort{Name: pointer("http"), Port: pointer(int32(99999))})
	s := service(func(s *corev1.ServiceSpec) {
		s.ClusterIPs = []string{"10.96.0.10", "fd00::10", ""}
		s.ExternalIPs = []string{"what"}
		s.Ports = append(s.Ports, corev1.ServicePort{Protocol: "ICMP", Port: 1}, corev1.ServicePort{Port: 70000})
	})
	fronts := Compile(services.Service{Service: s, Slices: []*discoveryv1.EndpointSlice{odd}}, testNode())
	if len(fronts) != 1 || len(fronts[0].Targets) != 0 {
		t.Errorf("got %v", fronts)
	}
}

func TestHostPortGoesBeforeService(t *testing.T) {
	memory := &Memory{}
	proxy, err := Open(t.Context(), Config{Node: testNode(), Ruleset: memory})
	if err != nil {
		t.Fatal(err)
	}
	s := service(func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080 })
	batch := services.Batch{Services: []*corev1.Service{s}, Slices: []*discoveryv1.EndpointSlice{slice(endpoint("10.32.8.3", "n2", nil))}}
	if err := proxy.Sync(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	key := FrontKey{netip.MustParseAddr("192.0.2.1"), TCP, 30080}
	ports := []HostPort{{Port: 30080, Protocol: corev1.ProtocolTCP, PodIP: netip.MustParseAddr("10.32.7.9"), PodPort: 80}}
	for _, step := range []struct {
		ports []HostPort
		want  string
	}{{ports, "[10.32.7.9:80]"}, {nil, "[10.32.8.3:8080]"}} {
		if err := proxy.SetHostPorts(t.Context(), "pod", step.ports); err != nil {
			t.Fatal(err)
		}
		if _, targets := memory.Lookup(netip.MustParseAddr("203.0.113.5"), key); fmt.Sprint(targets) != step.want {
			t.Errorf("got %v, want %s", targets, step.want)
		}
	}
}
