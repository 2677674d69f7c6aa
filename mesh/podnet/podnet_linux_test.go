package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"shoal/mesh/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nil)) }

// openNetwork sets up a pod network in this test program's namespace, removed when the test ends.
func openNetwork(t testing.TB) *Network {
	t.Helper()
	n, err := Open(t.Context(), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

func testConfig() Config {
	return Config{
		PodCIDR: netip.MustParsePrefix("10.32.7.0/24"), ClusterCIDR: netip.MustParsePrefix("10.32.0.0/12"),
	}
}

func attach(t testing.TB, n *Network, podUID string) (*nstest.Namespace, netip.Addr) {
	t.Helper()
	pod := nstest.New(t)
	ip, err := n.Attach(context.Background(), podUID, pod.Path())
	if err != nil {
		t.Fatalf("attach %s: %v", podUID, err)
	}
	return pod, ip
}

// serve makes ns answer on port, TCP and UDP; nil is the node itself.
func serve(t *testing.T, ns *nstest.Namespace, name, port string) {
	t.Helper()
	if ns != nil {
		nstest.Serve(ns.Listen("tcp4", ":"+port), ns.ListenPacket("udp4", ":"+port), name)
		return
	}
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p, err := net.ListenPacket("udp4", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	nstest.Serve(l, p, name)
}

// expect checks who answers, and which address it sees.
func expect(t *testing.T, from *nstest.Namespace, address, name, saw string) {
	t.Helper()
	for _, network := range []string{"tcp4", "udp4"} {
		gotName, gotSaw, err := nstest.Ask(from, network, address, dialTimeout)
		if err != nil || gotName != name || gotSaw != saw {
			t.Errorf("%s %s: %q saw %q, %v; want %s to see %s", network, address, gotName, gotSaw, err, name, saw)
		}
	}
}

const dialTimeout = 5 * time.Second

func TestPodsReachEachOtherAndTheNode(t *testing.T) {
	n := openNetwork(t)
	a, aIP := attach(t, n, "pod-a")
	b, bIP := attach(t, n, "pod-b")
	serve(t, a, "a", "80")
	serve(t, b, "b", "80")
	serve(t, nil, "node", "8080")
	expect(t, a, bIP.String()+":80", "b", aIP.String())
	expect(t, nil, aIP.String()+":80", "a", n.Gateway().String())
	expect(t, b, n.Gateway().String()+":8080", "node", bIP.String())
	expect(t, a, "127.0.0.1:80", "a", "127.0.0.1")
}

// A pod that gives itself its neighbour's address, or any other, is not heard.
func TestPodsCannotSendFromForeignAddresses(t *testing.T) {
	n := openNetwork(t)
	a, _ := attach(t, n, "pod-a")
	b, bIP := attach(t, n, "pod-b")
	c, cIP := attach(t, n, "pod-c")
	links := a.Links()
	link, err := links.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	server := c.ListenPacket("udp4", ":53")
	for _, text := range []string{bIP.String(), "192.0.2.77"} {
		if err := links.AddrAdd(link, &netlink.Addr{IPNet: single(netip.MustParseAddr(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.ListenPacket("udp4", text+":0").WriteTo([]byte("forged"), &net.UDPAddr{IP: cIP.AsSlice(), Port: 53}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.ListenPacket("udp4", ":0").WriteTo([]byte("honest"), &net.UDPAddr{IP: cIP.AsSlice(), Port: 53}); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(dialTimeout)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	size, from, err := server.ReadFrom(buf)
	if err != nil || string(buf[:size]) != "honest" {
		t.Errorf("got %q from %v, %v", buf[:size], from, err)
	}
}

// What is addressed to a pod that does not exist fails at once, and does not leave the node.
func TestUnusedAddressesAreUnreachable(t *testing.T) {
	n := openNetwork(t)
	pod, _ := attach(t, n, "pod-a")
	wire(t, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.9/24"))
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 9)}); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"10.32.7.200:80", "10.33.1.1:80"} {
		_, fromPod := pod.Dial("tcp4", address, dialTimeout)
		_, fromNode := net.DialTimeout("tcp4", address, dialTimeout)
		for _, err := range []error{fromPod, fromNode} {
			if !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("%s: %v", address, err)
			}
		}
	}
}

func TestOutsideSeesTheNode(t *testing.T) {
	n := openNetwork(t)
	pod, _ := attach(t, n, "pod-a")
	outside := wire(t, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.9/24"))
	serve(t, outside, "outside", "80")
	expect(t, pod, "192.0.2.9:80", "outside", "192.0.2.1")
}

// wire connects a new namespace to the test program's by a veth pair.
func wire(t *testing.T, here, there netip.Prefix) *nstest.Namespace {
	t.Helper()
	ns := nstest.New(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "uplink", netlink.NsFd(ns.FD())
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	host, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	for links, prefix := range map[*netlink.Handle]netip.Prefix{host: here, ns.Links(): there} {
		link, err := links.LinkByName("uplink")
		if err != nil {
			t.Fatal(err)
		}
		address := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}
		if err := errors.Join(links.AddrAdd(link, &netlink.Addr{IPNet: address}), links.LinkSetUp(link)); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

func TestAttachIsIdempotentAndDetachFrees(t *testing.T) {
	n := openNetwork(t)
	pod, ip := attach(t, n, "pod-a")
	again, err := n.Attach(t.Context(), "pod-a", pod.Path())
	if err != nil || again != ip {
		t.Errorf("second attach: %s, %v; want %s", again, err, ip)
	}
	for range 2 {
		if err := n.Detach(t.Context(), "pod-a"); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	if len(n.Existing()) != 0 {
		t.Errorf("left over: %v", n.Existing())
	}
	if next, err := n.Attach(t.Context(), "pod-a", pod.Path()); err != nil || next == ip {
		t.Errorf("attached again: %s, %v; want another address than %s at once", next, err, ip)
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	n := openNetwork(t)
	if _, err := n.Attach(t.Context(), "pod-a", "/nonexistent"); err == nil {
		t.Error("attached to a namespace that does not exist")
	}
	pod, _ := attach(t, n, "pod-b")
	if _, err := n.Attach(t.Context(), "pod-c", pod.Path()); err == nil {
		t.Error("one namespace got two eth0")
	}
	if left := n.Existing(); len(left) != 1 {
		t.Errorf("attached: %v", left)
	}
	if links, err := n.links.Existing(t.Context()); err != nil || len(links) != 1 {
		t.Errorf("links: %v, %v", links, err)
	}
}

// A restarted peer knows its pods, and cleans up what the previous one did not finish.
func TestRestartAdopts(t *testing.T) {
	n := openNetwork(t)
	pod, ip := attach(t, n, "6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	attach(t, n, "pod-gone")
	attach(t, n, "pod-half")
	link, err := netlink.LinkByName(hostLink("pod-half"))
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetAlias(link, ""); err != nil { // as after a crash in the middle of Attach
		t.Fatal(err)
	}

	restarted, err := Open(t.Context(), testConfig())
	if err != nil {
		t.Fatal(err)
	}
	if got := restarted.Existing(); len(got) != 2 || got["6ba7b810-9dad-11d1-80b4-00c04fd430c8"] != ip {
		t.Errorf("adopted %v", got)
	}
	if _, err := netlink.LinkByName(hostLink("pod-half")); err == nil {
		t.Error("the half-made connection is still there")
	}
	swept, err := restarted.Sweep(t.Context(), func(podUID string) bool { return podUID != "pod-gone" })
	if err != nil || len(swept) != 1 || swept[0] != "pod-gone" {
		t.Errorf("swept %v, %v", swept, err)
	}
	serve(t, pod, "adopted", "80")
	expect(t, nil, ip.String()+":80", "adopted", restarted.Gateway().String())
	if other, err := restarted.Attach(t.Context(), "pod-new", nstest.New(t).Path()); err != nil || other == ip {
		t.Errorf("new pod got %s, %v", other, err)
	}
}

// A pod's namespace may be gone before its connection is removed.
func TestDetachAfterNamespaceIsGone(t *testing.T) {
	n := openNetwork(t)
	t.Run("pod", func(t *testing.T) { attach(t, n, "pod-a") })
	if err := n.Detach(t.Context(), "pod-a"); err != nil {
		t.Error(err)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	n := openNetwork(b)
	for i := range b.N {
		b.StopTimer()
		pod := nstest.New(b)
		uid := fmt.Sprint("pod-", i)
		b.StartTimer()
		if _, err := n.Attach(b.Context(), uid, pod.Path()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		n.pool.released = map[netip.Addr]time.Time{} // the reuse delay is not what is measured
		if err := n.Detach(b.Context(), uid); err != nil {
			b.Fatal(err)
		}
		n.pool.released = map[netip.Addr]time.Time{}
	}
}
