package mesh_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"shoal/mesh/nstest"
	"shoal/mesh/podnet"
	"shoal/mesh/services"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
)

// A node is a process of its own in a network namespace of its own, because the userspace tunnel's sockets belong to the
// process. The test talks to it by JSON-RPC over a pair of pipes.

var (
	clusterCIDR = netip.MustParsePrefix("10.32.0.0/12")
	serviceCIDR = netip.MustParsePrefix("10.96.0.0/16")
)

const (
	wireGuardPort = 51820
	patience      = 5 * time.Second
)

func underlay(number int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(number)}) }

func podCIDR(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(number), 0}), 24)
}

func nodeName(number int) string { return fmt.Sprint("n", number) }

// nodeProcess is the node's side.
type nodeProcess struct {
	number  int
	network *podnet.Network
	tunnel  *tunnel.Tunnel
	proxy   *vip.Proxy
	key     tunnel.Key
	pods    map[string]*nstest.Namespace
}

// runNode is the role "node": it serves until its standard input ends.
func runNode() error {
	server := rpc.NewServer()
	if err := server.RegisterName("Node", &nodeProcess{pods: map[string]*nstest.Namespace{}}); err != nil {
		return err
	}
	server.ServeCodec(jsonrpc.NewServerCodec(pipes{os.Stdin, os.Stdout}))
	return nil
}

type pipes struct {
	io.Reader
	io.Writer
}

func (p pipes) Close() error { return nil }

// Nothing is the argument or the answer of a call that needs none.
type Nothing struct{}

// Open brings node number up and returns its tunnel's public key. The underlay interface is there already.
func (n *nodeProcess) Open(number int, publicKey *string) error {
	n.number = number
	links, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer links.Close()
	link, err := links.LinkByName("underlay")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(netip.PrefixFrom(underlay(number), 24).String())
	if err != nil {
		return err
	}
	if err := errors.Join(links.AddrAdd(link, address), links.LinkSetUp(link)); err != nil {
		return err
	}
	ctx := context.Background()
	n.network, err = podnet.Open(ctx, podnet.Config{PodCIDR: podCIDR(number), ClusterCIDR: clusterCIDR})
	if err != nil {
		return err
	}
	if n.tunnel, err = tunnel.Open(ctx, tunnel.Config{Interface: fmt.Sprint("wgtest", number)}); err != nil {
		return err
	}
	n.proxy, err = vip.Open(ctx, vip.Config{Node: vip.Node{
		Name: nodeName(number), IPs: []netip.Addr{underlay(number)},
		PodCIDR: podCIDR(number), ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR,
	}})
	if err != nil {
		return err
	}
	if n.key, err = tunnel.NewPrivateKey(); err != nil {
		return err
	}
	*publicKey = n.key.Public().String()
	return nil
}

// Connect gives the tunnel the other nodes, by number and public key.
func (n *nodeProcess) Connect(keys map[int]string, _ *Nothing) error {
	want := tunnel.Want{PrivateKey: n.key, ListenPort: wireGuardPort, Source: n.network.Gateway()}
	for number, text := range keys {
		key, err := tunnel.ParseKey(text)
		if err != nil {
			return err
		}
		if number == n.number {
			continue
		}
		want.Peers = append(want.Peers, tunnel.Peer{
			ID: nodeName(number), PublicKey: key, Endpoint: netip.AddrPortFrom(underlay(number), wireGuardPort),
			AllowedIPs: []netip.Prefix{podCIDR(number)},
		})
	}
	return n.tunnel.Sync(context.Background(), want)
}

// Peers returns the names of the tunnel's other ends that have shaken hands.
func (n *nodeProcess) Peers(_ Nothing, names *[]string) error {
	status, err := n.tunnel.Status()
	if err != nil {
		return err
	}
	for _, p := range status.Peers {
		if !p.LastHandshake.IsZero() {
			*names = append(*names, p.ID)
		}
	}
	return nil
}

// AddPod starts a pod that answers on 8080, and returns its address.
func (n *nodeProcess) AddPod(name string, ip *string) error {
	pod := nstest.New(process{})
	addr, err := n.network.Attach(context.Background(), name, pod.Path())
	if err != nil {
		return err
	}
	n.pods[name] = pod
	nstest.Serve(pod.Listen("tcp4", ":8080"), pod.ListenPacket("udp4", ":8080"), name)
	*ip = addr.String()
	return nil
}

// ServiceChange is a services.Batch as JSON.
type ServiceChange struct{ Batch json.RawMessage }

// Services gives the node a batch.
func (n *nodeProcess) Services(change ServiceChange, _ *Nothing) error {
	var batch services.Batch
	if err := json.Unmarshal(change.Batch, &batch); err != nil {
		return err
	}
	return n.proxy.Sync(context.Background(), batch)
}

// Question is whom to ask and from where: a pod's name, or the node itself if empty.
type Question struct{ Pod, Network, Address string }

// Answer is who answered, and the address it saw.
type Answer struct{ Name, Saw string }

// Ask asks.
func (n *nodeProcess) Ask(q Question, a *Answer) error {
	var from *nstest.Namespace
	if q.Pod != "" {
		from = n.pods[q.Pod]
	}
	var err error
	a.Name, a.Saw, err = nstest.Ask(from, q.Network, q.Address, patience)
	return err
}

// process stands in for a test in a node's process: its namespaces last until it ends.
type process struct{ testing.TB }

func (process) Helper()        {}
func (process) Cleanup(func()) {}
func (process) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}
