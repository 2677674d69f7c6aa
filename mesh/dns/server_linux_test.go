package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/mesh/nstest"
	"shoal/mesh/podnet"
	"shoal/mesh/services"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nil)) }

// startServer runs a server until the test ends.
func startServer(t testing.TB, c Config) *Server {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s
}

const patience = 5 * time.Second

func ask(t testing.TB, network, server, name string, qtype uint16) *dns.Msg {
	t.Helper()
	client := &dns.Client{Net: network, Timeout: patience}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, qtype), server)
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return reply
}

func text(reply *dns.Msg) string {
	var out []string
	for _, rr := range reply.Answer {
		out = append(out, data(rr))
	}
	return strings.Join(out, " ")
}

// noUpstream is a resolv.conf without servers.
func noUpstream(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A pod asks the node's link-local address, UDP and TCP.
func TestPodResolvesThroughTheNode(t *testing.T) {
	s := startServer(t, Config{ResolvConf: noUpstream(t)})
	network, err := podnet.Open(t.Context(), podnet.Config{
		PodCIDR: netip.MustParsePrefix("10.32.7.0/24"), ClusterCIDR: netip.MustParsePrefix("10.32.0.0/12"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(context.Background()); err != nil {
			t.Errorf("close pod network: %v", err)
		}
	})
	pod := nstest.New(t)
	if _, err := network.Attach(t.Context(), "pod", pod.Path()); err != nil {
		t.Fatal(err)
	}
	s.Sync(services.Batch{Services: []*corev1.Service{service("web", nil)}})
	for _, protocol := range []string{"udp", "tcp"} {
		var reply *dns.Msg
		pod.Do(func() { reply = ask(t, protocol, DefaultAddress.String(), "web.default.svc.cluster.local.", dns.TypeA) })
		if text(reply) != "10.96.0.10" || !reply.Authoritative || reply.Answer[0].Header().Ttl != TTL {
			t.Errorf("%s: %v", protocol, reply)
		}
	}
	s.Sync(services.Batch{Full: true})
	if reply := ask(t, "udp", DefaultAddress.String(), "web.default.svc.cluster.local.", dns.TypeA); reply.Rcode != dns.RcodeNameError {
		t.Errorf("after the Service was removed: %v", reply)
	}
	if reply := ask(t, "udp", DefaultAddress.String(), "dns-version.cluster.local.", dns.TypeTXT); text(reply) != `"1.1.0"` {
		t.Errorf("the fixed names are gone: %v", reply)
	}
}

// upstream is a server that answers everything with one address and counts.
func upstream(t testing.TB, rcode int) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := new(atomic.Int64)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		asked.Add(1)
		reply := new(dns.Msg).SetRcode(request, rcode)
		if rcode == dns.RcodeSuccess {
			reply.Answer = []dns.RR{&dns.A{Hdr: header(request.Question[0].Name, dns.TypeA), A: net.IPv4(203, 0, 113, 7)}}
		}
		_ = w.WriteMsg(reply) // the asking side notices
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ActivateAndServe() // ends with the socket
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), asked
}

func local(t testing.TB) []netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return []netip.AddrPort{conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

func TestForwarding(t *testing.T) {
	good, asked := upstream(t, dns.RcodeSuccess)
	broken, _ := upstream(t, dns.RcodeServerFailure)
	dead := local(t)[0]
	s := startServer(t, Config{Listen: local(t), Upstreams: []netip.AddrPort{broken, dead, good}})
	at := s.Addresses()[0].String()
	s.Sync(services.Batch{Services: []*corev1.Service{service("alias", func(s *corev1.ServiceSpec) {
		s.Type, s.ClusterIP, s.ExternalName = corev1.ServiceTypeExternalName, "", "example.org"
	})}})
	if reply := ask(t, "udp", at, "example.com.", dns.TypeA); text(reply) != "203.0.113.7" || reply.Authoritative {
		t.Errorf("forwarded: %v", reply)
	}
	if reply := ask(t, "udp", at, "alias.default.svc.cluster.local.", dns.TypeA); text(reply) != "example.org. 203.0.113.7" {
		t.Errorf("alias: %v", reply)
	}
	before := asked.Load()
	ask(t, "udp", at, "nosuch.default.svc.cluster.local.", dns.TypeA)
	if asked.Load() != before {
		t.Error("a name of the cluster was passed on")
	}
}

func TestWithoutUpstreamFailsFast(t *testing.T) {
	listen := local(t)
	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	// Only ourselves: following that would never end.
	if err := os.WriteFile(resolvConf, fmt.Appendf(nil, "nameserver %s\n", listen[0].Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, Config{Listen: listen, ResolvConf: resolvConf})
	s.upstreams.avoid = append(s.upstreams.avoid, netip.AddrPortFrom(listen[0].Addr(), 53))
	started := time.Now()
	if reply := ask(t, "udp", s.Addresses()[0].String(), "example.com.", dns.TypeA); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", reply)
	}
	if took := time.Since(started); took > time.Second {
		t.Errorf("failed after %s", took)
	}
	missing := newUpstreams(Config{ResolvConf: "/nonexistent"})
	if got := missing.list(); len(got) != 0 {
		t.Errorf("servers of a missing file: %v", got)
	}
}

func TestTruncationAndOddQueries(t *testing.T) {
	s := startServer(t, Config{Listen: local(t), ResolvConf: noUpstream(t)})
	at := s.Addresses()[0].String()
	var endpoints []discoveryv1.Endpoint
	for i := range 200 {
		endpoints = append(endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.32.7.%d", i+2)}})
	}
	s.Sync(services.Batch{
		Services: []*corev1.Service{service("many", headless)}, Slices: []*discoveryv1.EndpointSlice{slice("many", endpoints...)},
	})
	const name = "many.default.svc.cluster.local."
	if reply := ask(t, "udp", at, name, dns.TypeA); !reply.Truncated || packed(t, reply) > dns.MinMsgSize {
		t.Errorf("UDP: truncated %v, %d bytes", reply.Truncated, packed(t, reply))
	}
	if reply := ask(t, "tcp", at, name, dns.TypeA); reply.Truncated || len(reply.Answer) != 200 {
		t.Errorf("TCP: truncated %v, %d answers", reply.Truncated, len(reply.Answer))
	}
	client := &dns.Client{Timeout: patience}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(4096, false), at)
	if err != nil || !reply.Truncated || packed(t, reply) > udpSize || reply.IsEdns0() == nil || len(reply.Answer) < 50 {
		t.Errorf("UDP with EDNS: %v, %d answers, %d bytes", err, len(reply.Answer), packed(t, reply))
	}
	for what, change := range map[string]func(*dns.Msg){
		"NOTIMP":  func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		"FORMERR": func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"REFUSED": func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
	} {
		request := new(dns.Msg).SetQuestion(name, dns.TypeA)
		change(request)
		got := dns.RcodeToString[s.reply(request, false).Rcode]
		if got != what {
			t.Errorf("got %s, want %s", got, what)
		}
	}
	if got := s.reply(new(dns.Msg).SetAxfr("cluster.local."), true).Rcode; got != dns.RcodeRefused {
		t.Errorf("transfer: %s", dns.RcodeToString[got])
	}
}

// packed is the size of a reply as it was sent.
func packed(t testing.TB, m *dns.Msg) int {
	t.Helper()
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

func TestAddressInUse(t *testing.T) {
	s := startServer(t, Config{Listen: local(t), ResolvConf: noUpstream(t)})
	at := netip.MustParseAddrPort(s.Addresses()[0].String())
	if _, err := Open(t.Context(), Config{Listen: []netip.AddrPort{at}}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v", err)
	}
}

// Sockets that were never served close as well.
func TestCloseWithoutRun(t *testing.T) {
	listen := local(t)
	for range 2 {
		s, err := Open(t.Context(), Config{Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkQuery(b *testing.B) {
	s := startServer(b, Config{Listen: local(b), ResolvConf: noUpstream(b)})
	var all []*corev1.Service
	for i := range 10000 {
		all = append(all, service(fmt.Sprint("web-", i), nil))
	}
	s.Sync(services.Batch{Services: all})
	client := &dns.Client{Timeout: patience}
	conn, err := client.Dial(s.Addresses()[0].String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	b.ResetTimer()
	for i := range b.N {
		request := new(dns.Msg).SetQuestion(fmt.Sprintf("web-%d.default.svc.cluster.local.", i%10000), dns.TypeA)
		if _, _, err := client.ExchangeWithConn(request, conn); err != nil {
			b.Fatal(err)
		}
	}
}
