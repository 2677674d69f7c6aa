package vip

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/mesh/nstest"
	"shoal/mesh/podnet"
	"shoal/mesh/services"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nil)) }

// world is a node with its pods and something outside, in this test program's namespace.
type world struct {
	t       testing.TB
	network *podnet.Network
	proxy   *Proxy
	outside *nstest.Namespace // 192.0.2.9; the node is 192.0.2.1
}

const patience = 5 * time.Second

func newWorld(t testing.TB) *world {
	t.Helper()
	node := testNode()
	network, err := podnet.Open(t.Context(), podnet.Config{PodCIDR: node.PodCIDR, ClusterCIDR: node.ClusterCIDR})
	if err != nil {
		t.Fatal(err)
	}
	// Pods of an earlier test had the same addresses, and the same ports may lead to where they were.
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, network: network}
	w.outside = nstest.New(t)
	w.wire()
	w.open()
	t.Cleanup(func() {
		if err := errors.Join(w.proxy.Close(context.Background()), network.Close(context.Background())); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return w
}

// open starts a proxy, as after a restart.
func (w *world) open() {
	w.t.Helper()
	proxy, err := Open(w.t.Context(), Config{Node: testNode()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.proxy = proxy
}

// wire connects the outside, whose way to everywhere is the node.
func (w *world) wire() {
	w.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "uplink", netlink.NsFd(w.outside.FD())
	if err := netlink.LinkAdd(veth); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = netlink.LinkDel(veth) }) // goes with the outside, at the latest
	here, err := netlink.NewHandle()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(here.Close)
	for links, text := range map[*netlink.Handle]string{here: "192.0.2.1/24", w.outside.Links(): "192.0.2.9/24"} {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			w.t.Fatal(err)
		}
		link, err := links.LinkByName("uplink")
		if err != nil {
			w.t.Fatal(err)
		}
		if err := errors.Join(links.AddrAdd(link, address), links.LinkSetUp(link)); err != nil {
			w.t.Fatal(err)
		}
	}
	there := w.outside.Links()
	link, err := there.LinkByName("uplink")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := there.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)}); err != nil {
		w.t.Fatal(err)
	}
}

// pod attaches a pod that answers on 8080, TCP and UDP, with its own name and the address it sees.
func (w *world) pod(name string) (*nstest.Namespace, string) {
	w.t.Helper()
	ns := nstest.New(w.t)
	ip, err := w.network.Attach(w.t.Context(), name, ns.Path())
	if err != nil {
		w.t.Fatal(err)
	}
	l, p := ns.Listen("tcp4", ":8080"), ns.ListenPacket("udp4", ":8080")
	nstest.Serve(l, p, name)
	return ns, ip.String()
}

// sync gives the node these endpoints of Service web, changed by change.
func (w *world) sync(change func(*corev1.ServiceSpec), endpoints ...discoveryv1.Endpoint) {
	w.t.Helper()
	w.syncService(func(s *corev1.Service) {
		if change != nil {
			change(&s.Spec)
		}
	}, endpoints...)
}

func (w *world) syncService(change func(*corev1.Service), endpoints ...discoveryv1.Endpoint) {
	w.t.Helper()
	s := slice(endpoints...)
	// The same pods serve UDP under another port name.
	s.Ports = append(s.Ports, discoveryv1.EndpointPort{
		Name: pointer("udp"), Port: pointer(int32(8080)), Protocol: pointer(corev1.ProtocolUDP),
	})
	web := service(func(spec *corev1.ServiceSpec) {
		spec.Ports = append(spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80})
	})
	change(web)
	batch := services.Batch{Services: []*corev1.Service{web}, Slices: []*discoveryv1.EndpointSlice{s}}
	if err := w.proxy.Sync(context.Background(), batch); err != nil {
		w.t.Fatal(err)
	}
}

// client is a place to dial from; nil is the node itself.
type client = *nstest.Namespace

// expect checks who answers; several names mean that all of them do, and nobody else.
func (w *world) expect(from client, network, address, saw string, names ...string) {
	w.t.Helper()
	count := map[string]int{}
	for range 40 * len(names) {
		name, seen, err := nstest.Ask(from, network, address, patience)
		if err != nil {
			w.t.Errorf("%s %s: %v", network, address, err)
			return
		}
		if saw != "" && seen != saw {
			w.t.Errorf("%s %s: %s saw %s, want %s", network, address, name, seen, saw)
			return
		}
		count[name]++
	}
	for _, name := range names {
		// 40 expected; less than 10 or none at all has a chance of one in millions.
		if count[name] < 10 {
			w.t.Errorf("%s %s: %v, want an even share for each of %v", network, address, count, names)
		}
		delete(count, name)
	}
	if len(count) > 0 {
		w.t.Errorf("%s %s: also answered by %v", network, address, count)
	}
}

func (w *world) expectRefused(from client, network, address string) {
	w.t.Helper()
	started := time.Now()
	_, _, err := nstest.Ask(from, network, address, patience)
	// The node's own UDP packet is stopped before it is sent, which its sender learns as "not permitted".
	stopped := from == nil && network == "udp4" && errors.Is(err, syscall.EPERM)
	if !stopped && !errors.Is(err, syscall.ECONNREFUSED) {
		w.t.Errorf("%s %s: %v, want refusal", network, address, err)
	}
	if took := time.Since(started); took > time.Second {
		w.t.Errorf("%s %s: refused after %s", network, address, took)
	}
}

func (w *world) expectSilence(from client, network, address string) {
	w.t.Helper()
	_, _, err := nstest.Ask(from, network, address, 300*time.Millisecond)
	if e := net.Error(nil); !errors.As(err, &e) || !e.Timeout() {
		w.t.Errorf("%s %s: %v, want silence", network, address, err)
	}
}

func everywhere(s *corev1.ServiceSpec) {
	s.Type, s.Ports[0].NodePort, s.Ports[1].NodePort = corev1.ServiceTypeNodePort, 30080, 30080
	s.ExternalIPs = []string{"198.51.100.7"}
}

func TestPacketsToEveryKindOfAddress(t *testing.T) {
	w := newWorld(t)
	a, aIP := w.pod("a")
	_, bIP := w.pod("b")
	_, cIP := w.pod("c")
	w.sync(everywhere, endpoint(bIP, "n1", nil), endpoint(cIP, "n1", nil))

	for _, network := range []string{"tcp4", "udp4"} {
		w.expect(a, network, "10.96.0.10:80", aIP, "b", "c")
		w.expect(nil, network, "10.96.0.10:80", "10.32.7.1", "b", "c")
		w.expect(a, network, "192.0.2.1:30080", aIP, "b", "c")
		w.expect(nil, network, "192.0.2.1:30080", "192.0.2.1", "b", "c")
		w.expect(w.outside, network, "192.0.2.1:30080", "192.0.2.9", "b", "c")
		w.expect(w.outside, network, "198.51.100.7:80", "192.0.2.9", "b", "c")
		w.expect(a, network, "198.51.100.7:80", aIP, "b", "c")
	}
}

func TestHairpin(t *testing.T) {
	w := newWorld(t)
	b, bIP := w.pod("b")
	w.sync(everywhere, endpoint(bIP, "n1", nil))
	for _, network := range []string{"tcp4", "udp4"} {
		w.expect(b, network, "10.96.0.10:80", "10.32.7.1", "b")
		w.expect(b, network, "192.0.2.1:30080", "10.32.7.1", "b")
	}
}

func TestRefusalAndSilence(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	w.sync(everywhere)
	for _, network := range []string{"tcp4", "udp4"} {
		for _, from := range []client{a, nil} {
			w.expectRefused(from, network, "10.96.0.10:80")   // no endpoints
			w.expectRefused(from, network, "10.96.0.10:81")   // no such port
			w.expectRefused(from, network, "10.96.77.77:80")  // no such Service
			w.expectRefused(from, network, "192.0.2.1:30080") // no endpoints
		}
		w.expectRefused(w.outside, network, "192.0.2.1:30080")
		w.expectRefused(w.outside, network, "198.51.100.7:80")
	}
	local := func(s *corev1.ServiceSpec) {
		everywhere(s)
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.InternalTrafficPolicy = pointer(corev1.ServiceInternalTrafficPolicyLocal)
	}
	w.sync(local, endpoint(bIP, "elsewhere", nil))
	w.expectSilence(a, "tcp4", "10.96.0.10:80")
	w.expectSilence(w.outside, "tcp4", "192.0.2.1:30080")
	w.expect(a, "tcp4", "192.0.2.1:30080", "", "b") // from inside, the policy does not count
	w.sync(local, endpoint(bIP, "n1", nil))
	w.expect(w.outside, "tcp4", "192.0.2.1:30080", "192.0.2.9", "b")
	w.expect(a, "tcp4", "10.96.0.10:80", "", "b")
}

func TestAffinity(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	names := map[string]string{}
	var endpoints []discoveryv1.Endpoint
	for _, name := range []string{"b", "c", "d"} {
		_, ip := w.pod(name)
		names[name] = ip
		endpoints = append(endpoints, endpoint(ip, "n1", nil))
	}
	sticky := func(s *corev1.ServiceSpec) {
		everywhere(s)
		s.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	w.sync(sticky, endpoints...)
	var kept string
	for _, from := range []client{a, nil, w.outside} {
		address := "10.96.0.10:80"
		if from == w.outside {
			address = "192.0.2.1:30080"
		}
		first, _, err := nstest.Ask(from, "tcp4", address, patience)
		if err != nil {
			t.Fatal(err)
		}
		w.expect(from, "tcp4", address, "", first)
		if from == a {
			kept = first
		}
	}
	// The target leaves: the client settles on another one, and stays there.
	rest := endpoints[:0:0]
	for _, e := range endpoints {
		if e.Addresses[0] != names[kept] {
			rest = append(rest, e)
		}
	}
	w.sync(sticky, rest...)
	second, _, err := nstest.Ask(a, "tcp4", "10.96.0.10:80", patience)
	if err != nil || second == kept {
		t.Fatalf("after %s left: %s, %v", kept, second, err)
	}
	w.expect(a, "tcp4", "10.96.0.10:80", "", second)
	// It comes back: nobody moves.
	w.sync(sticky, endpoints...)
	w.expect(a, "tcp4", "10.96.0.10:80", "", second)
}

func TestUDPClientLeavesGoneEndpoint(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	_, cIP := w.pod("c")
	w.sync(nil, endpoint(bIP, "n1", nil))
	conn, err := a.Dial("udp4", "10.96.0.10:80", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if name, _, err := nstest.AskOn(conn, patience); err != nil || name != "b" {
		t.Fatalf("%s, %v", name, err)
	}
	w.sync(nil, endpoint(cIP, "n1", nil))
	if name, _, err := nstest.AskOn(conn, patience); err != nil || name != "c" {
		t.Errorf("after b left: %q, %v; want c", name, err)
	}
	// The same across a restart, which does not know what has changed.
	w.open()
	w.sync(nil, endpoint(bIP, "n1", nil))
	if name, _, err := nstest.AskOn(conn, patience); err != nil || name != "b" {
		t.Errorf("after a restart: %q, %v; want b", name, err)
	}
}

func TestLoadBalancerSourceRanges(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	balanced := func(ranges ...string) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerSourceRanges = corev1.ServiceTypeLoadBalancer, ranges
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.8"}}
		}
	}
	w.syncService(balanced("192.0.2.8/31", "203.0.113.0/24"), endpoint(bIP, "n1", nil))
	w.expect(w.outside, "tcp4", "198.51.100.8:80", "192.0.2.9", "b")
	w.expectSilence(a, "tcp4", "198.51.100.8:80")
	w.expect(a, "tcp4", "10.96.0.10:80", "", "b") // the cluster IP is not guarded
	w.syncService(balanced("10.32.0.0/12"), endpoint(bIP, "n1", nil))
	w.expectSilence(w.outside, "tcp4", "198.51.100.8:80")
	w.expect(a, "tcp4", "198.51.100.8:80", "", "b")
	w.syncService(balanced(), endpoint(bIP, "n1", nil))
	w.expect(w.outside, "tcp4", "198.51.100.8:80", "192.0.2.9", "b")
}

func TestHostPort(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	ports := []HostPort{{Port: 9000, Protocol: corev1.ProtocolTCP, PodIP: netip.MustParseAddr(bIP), PodPort: 8080}}
	if err := w.proxy.SetHostPorts(t.Context(), "b", ports); err != nil {
		t.Fatal(err)
	}
	for _, from := range []client{a, nil, w.outside} {
		w.expect(from, "tcp4", "192.0.2.1:9000", "", "b")
	}
	if err := w.proxy.SetHostPorts(t.Context(), "b", nil); err != nil {
		t.Fatal(err)
	}
	w.expectRefused(w.outside, "tcp4", "192.0.2.1:9000")
}

// A restarted peer replaces the whole ruleset in one step: open connections live, new ones never fail.
func TestRestartIsNotNoticed(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	w.sync(everywhere, endpoint(bIP, "n1", nil))
	open, err := a.Dial("tcp4", "10.96.0.10:80", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, _, err := nstest.AskOn(open, patience); err != nil {
		t.Fatal(err)
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := nstest.Ask(a, "tcp4", "10.96.0.10:80", patience); err != nil {
				failed <- err
				return
			}
		}
	}()
	before, err := w.proxy.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		w.open()
		w.sync(everywhere, endpoint(bIP, "n1", nil))
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("a new connection during restarts: %v", err)
	}
	if after, err := w.proxy.Dump(t.Context()); err != nil || after != before {
		t.Errorf("after restarts: %v\n%s\nbefore:\n%s", err, after, before)
	}
	if _, err := open.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := nstest.AskOn(open, patience); err != nil || got != "hello" {
		t.Errorf("the open connection: %q, %v", got, err)
	}
}

func TestNoAnswerIsLostWhileEndpointsChange(t *testing.T) {
	w := newWorld(t)
	a, _ := w.pod("a")
	_, bIP := w.pod("b")
	_, cIP := w.pod("c")
	b, c := endpoint(bIP, "n1", nil), endpoint(cIP, "n1", nil)
	w.sync(nil, b, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 200 {
			switch i % 3 {
			case 0:
				w.sync(nil, b)
			case 1:
				w.sync(nil, c)
			default:
				w.sync(nil, b, c)
			}
		}
	}()
	for {
		if _, _, err := nstest.Ask(a, "tcp4", "10.96.0.10:80", patience); err != nil {
			t.Errorf("while endpoints changed: %v", err)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}
