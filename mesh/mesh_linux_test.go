// Package mesh_test lets nodes talk to each other: pods, tunnels and Services together, each node a process in its own
// network namespace, all joined by an underlay.
package mesh_test

import (
	"encoding/json"
	"errors"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/mesh/nstest"
	"shoal/mesh/services"
)

func TestMain(m *testing.M) {
	os.Exit(nstest.Main(m, map[string]func() error{"node": runNode}))
}

// node is the test's side of a node.
type node struct {
	t      testing.TB
	number int
	client *rpc.Client
}

// cluster starts nodes 1 to count, joined by a bridge in this test program's namespace and by their tunnels.
func cluster(t testing.TB, count int) []*node {
	t.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "underlay"}}
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(bridge); err != nil {
			t.Errorf("remove underlay: %v", err)
		}
	})
	var nodes []*node
	keys := map[int]string{}
	for number := 1; number <= count; number++ {
		n := startNode(t, number, bridge)
		var key string
		n.call("Open", number, &key)
		keys[number] = key
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.call("Connect", keys, &Nothing{})
	}
	return nodes
}

func startNode(t testing.TB, number int, bridge *netlink.Bridge) *node {
	t.Helper()
	theirIn, ourOut := pipe(t)
	ourIn, theirOut := pipe(t)
	process := nstest.Start(t, "node", theirIn, theirOut)
	theirIn.Close()
	theirOut.Close()

	attrs := netlink.NewLinkAttrs()
	// The interfaces of an earlier test's nodes go with their namespaces, some time after the processes.
	attrs.Name, attrs.MasterIndex = "underlay"+strconv.Itoa(process.Pid), bridge.Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "underlay", netlink.NsPid(process.Pid)
	if err := errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth)); err != nil {
		t.Fatal(err)
	}
	return &node{t: t, number: number, client: rpc.NewClientWithCodec(jsonrpc.NewClientCodec(duplex{ourIn, ourOut}))}
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

type duplex struct{ r, w *os.File }

func (d duplex) Read(b []byte) (int, error)  { return d.r.Read(b) }
func (d duplex) Write(b []byte) (int, error) { return d.w.Write(b) }
func (d duplex) Close() error                { return errors.Join(d.r.Close(), d.w.Close()) }

func (n *node) call(method string, args, reply any) {
	n.t.Helper()
	if err := n.client.Call("Node."+method, args, reply); err != nil {
		n.t.Fatalf("node %d: %s: %v", n.number, method, err)
	}
}

func (n *node) pod(name string) (ip string) {
	n.t.Helper()
	n.call("AddPod", name, &ip)
	return ip
}

// expect asks 30 times for each name, and wants each of names to answer, nobody else, and all to see the same address.
func (n *node) expect(pod, network, address, saw string, names ...string) {
	n.t.Helper()
	count := map[string]int{}
	for range 30 * len(names) {
		var a Answer
		if err := n.client.Call("Node.Ask", Question{pod, network, address}, &a); err != nil {
			n.t.Errorf("node %d, pod %q, %s %s: %v", n.number, pod, network, address, err)
			return
		}
		if a.Saw != saw {
			n.t.Errorf("node %d, pod %q, %s %s: %s saw %s, want %s", n.number, pod, network, address, a.Name, a.Saw, saw)
			return
		}
		count[a.Name]++
	}
	for _, name := range names {
		if count[name] == 0 {
			n.t.Errorf("node %d, pod %q, %s %s: answered by %v, want all of %v", n.number, pod, network, address, count, names)
		}
		delete(count, name)
	}
	if len(count) > 0 {
		n.t.Errorf("node %d, pod %q, %s %s: also answered by %v", n.number, pod, network, address, count)
	}
}

func TestPodsReachEachOtherAcrossNodes(t *testing.T) {
	nodes := cluster(t, 3)
	ips := make([]string, len(nodes))
	for i, n := range nodes {
		ips[i] = n.pod("pod" + strconv.Itoa(n.number))
	}
	for i, from := range nodes {
		for j, to := range nodes {
			for _, network := range []string{"tcp4", "udp4"} {
				name := "pod" + strconv.Itoa(to.number)
				if i != j {
					from.expect("pod"+strconv.Itoa(from.number), network, ips[j]+":8080", ips[i], name)
				}
				from.expect("", network, ips[j]+":8080", podCIDR(from.number).Addr().Next().String(), name)
			}
		}
	}
	var peers []string
	nodes[0].call("Peers", Nothing{}, &peers)
	if len(peers) != 2 {
		t.Errorf("node 1 has shaken hands with %v", peers)
	}
}

func TestServiceAcrossNodes(t *testing.T) {
	nodes := cluster(t, 3)
	client := nodes[0].pod("client")
	two, three := nodes[1].pod("two"), nodes[2].pod("three")
	outside := attachOutside(t)
	for _, n := range nodes {
		n.services(corev1.ServiceExternalTrafficPolicyCluster, map[string]string{two: "n2", three: "n3"})
	}
	for _, network := range []string{"tcp4", "udp4"} {
		nodes[0].expect("client", network, "10.96.0.10:80", client, "two", "three")
		nodes[0].expect("client", network, "192.0.2.1:30080", client, "two", "three")
		nodes[0].expect("", network, "10.96.0.10:80", "10.32.1.1", "two", "three")
		nodes[0].expect("", network, "192.0.2.1:30080", "10.32.1.1", "two", "three")
		// Another node's NodePort: the packet leaves the cluster's network for the underlay and comes back in.
		nodes[1].expect("two", network, "192.0.2.1:30080", "10.32.1.1", "two", "three")
		askOutside(t, outside, network, "192.0.2.1:30080", "10.32.1.1")
	}
	// With policy Local, the node of the endpoint answers, and sees who asks.
	for _, n := range nodes {
		n.services(corev1.ServiceExternalTrafficPolicyLocal, map[string]string{two: "n2", three: "n3"})
	}
	for _, network := range []string{"tcp4", "udp4"} {
		askOutside(t, outside, network, "192.0.2.2:30080", "192.0.2.9")
		nodes[0].expect("client", network, "192.0.2.1:30080", client, "two", "three")
	}
}

// services gives a node Service web at 10.96.0.10:80 and NodePort 30080, with endpoints by address and node.
func (n *node) services(policy corev1.ServiceExternalTrafficPolicy, endpoints map[string]string) {
	n.t.Helper()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	service.Spec = corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.10", ExternalTrafficPolicy: policy,
		Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080},
			{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: 30080},
		},
	}
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	slice.Namespace, slice.Name = "default", "web-x"
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	for _, p := range service.Spec.Ports {
		port := int32(8080)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	for ip, nodeName := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &nodeName})
	}
	batch, err := json.Marshal(services.Batch{
		Services: []*corev1.Service{service}, Slices: []*discoveryv1.EndpointSlice{slice}, Full: true,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.call("Services", ServiceChange{batch}, &Nothing{})
}

// attachOutside puts a machine that is no node on the underlay, at 192.0.2.9.
func attachOutside(t testing.TB) *nstest.Namespace {
	t.Helper()
	outside := nstest.New(t)
	bridge, err := netlink.LinkByName("underlay")
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "outside", bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(outside.FD())
	if err := errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth)); err != nil {
		t.Fatal(err)
	}
	links := outside.Links()
	link, err := links.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr("192.0.2.9/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(links.AddrAdd(link, address), links.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	return outside
}

func askOutside(t testing.TB, outside *nstest.Namespace, network, address, saw string) {
	t.Helper()
	nstest.Eventually(t, patience, func() error { // its link may just have come up
		_, _, err := nstest.Ask(outside, network, address, time.Second)
		return err
	})
	for range 20 {
		name, got, err := nstest.Ask(outside, network, address, patience)
		if err != nil || got != saw {
			t.Errorf("outside, %s %s: %s saw %s, %v; want %s", network, address, name, got, err, saw)
			return
		}
	}
}
