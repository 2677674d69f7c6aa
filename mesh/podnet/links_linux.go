package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	aliasPrefix = "shoal pod " // followed by the pod's UID and address: what adoption reads
	linkPrefix  = "shl"        // of the host's ends
	podLink     = "eth0"
	queueLength = 1000 // packets
)

// kernelLinks works on the network namespace in which hostLinks was called.
type kernelLinks struct {
	links *netlink.Handle

	mu   sync.Mutex
	node Node
}

func hostLinks() (Links, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &kernelLinks{links: links}, nil
}

// Setup puts the node's address on the loopback interface, switches forwarding on and installs the masquerading. It must
// run in a thread of the network namespace, because /proc/sys/net shows that of the caller.
func (k *kernelLinks) Setup(_ context.Context, n Node) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	lo, err := k.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := k.links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	if err := k.links.AddrReplace(lo, &netlink.Addr{IPNet: single(n.Gateway)}); err != nil {
		return fmt.Errorf("set address %s: %w", n.Gateway, err)
	}
	for _, r := range fences(n) {
		if err := k.links.RouteReplace(r); err != nil {
			return fmt.Errorf("fence in %s: %w", r.Dst, err)
		}
	}
	if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := installMasquerade(n); err != nil {
		return err
	}
	k.node = n
	return k.sweepHalfMade()
}

// fences keep packets for pods that do not exist from leaving by the default route, in clear: pods' and nodes' own
// routes are more specific.
func fences(n Node) []*netlink.Route {
	var out []*netlink.Route
	for _, p := range []netip.Prefix{n.PodCIDR, n.ClusterCIDR} {
		to := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		out = append(out, &netlink.Route{Dst: to, Type: unix.RTN_UNREACHABLE, Priority: fenceMetric})
	}
	return out
}

// fenceMetric makes a fence yield to any real route to the same range.
const fenceMetric = 1 << 20

// Attach makes the veth pair with one end in the pod's namespace already. The alias comes last: it marks a
// connection as complete.
func (k *kernelLinks) Attach(_ context.Context, a Attachment) error {
	k.mu.Lock()
	n := k.node
	k.mu.Unlock()
	pod, err := netns.GetFromPath(a.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", a.NetNS, err)
	}
	defer pod.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = hostLink(a.PodUID), n.MTU, hardwareAddr(n.Gateway)
	attrs.TxQLen, attrs.NumTxQueues, attrs.NumRxQueues = queueLength, 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = podLink, netlink.NsFd(pod), uint32(n.MTU)
	veth.PeerHardwareAddr = hardwareAddr(a.IP)
	if err := k.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth pair %s: %w", attrs.Name, err)
	}
	if err := configurePod(pod, n, a.IP); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", podLink, err)
	}
	link, err := k.links.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := k.configureHost(link, n, a.IP); err != nil {
		return fmt.Errorf("configure %s: %w", attrs.Name, err)
	}
	if err := carried(k.links, link.Attrs().Name); err != nil {
		return err
	}
	if err := carriedIn(pod, podLink); err != nil {
		return err
	}
	if err := k.links.LinkSetAlias(link, aliasPrefix+a.PodUID+" "+a.IP.String()); err != nil {
		return fmt.Errorf("mark %s: %w", attrs.Name, err)
	}
	return nil
}

// carried waits until an end that is up also sends. The end that was brought up first learns of the other one from a
// worker of the kernel, and until then it drops what it is given: the first packet of a young pod, repeated by TCP only
// a second later.
func carried(links *netlink.Handle, name string) error {
	deadline := time.Now().Add(carrierTimeout)
	for {
		link, err := links.LinkByName(name) // since Linux 6.8 asking makes it so
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is %s after %s", name, link.Attrs().OperState, carrierTimeout)
		}
		time.Sleep(carrierPoll)
	}
}

func carriedIn(pod netns.NsHandle, name string) error {
	links, err := netlink.NewHandleAt(pod, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink in the pod: %w", err)
	}
	defer links.Close()
	return carried(links, name)
}

const (
	carrierTimeout = 2 * time.Second
	carrierPoll    = 200 * time.Microsecond
)

// configureHost sets up the node's end: the way to this one address, and nothing else through it.
func (k *kernelLinks) configureHost(link netlink.Link, n Node, ip netip.Addr) error {
	if err := hardenLink(link.Attrs().Name); err != nil {
		return err
	}
	if err := k.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := k.links.NeighSet(neighbour(link, ip)); err != nil {
		return fmt.Errorf("set neighbour %s: %w", ip, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: single(ip), Src: n.Gateway.AsSlice(),
	}
	if err := k.links.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", ip, err)
	}
	return nil
}

// configurePod sets up the pod's end: its address without neighbours, the node as its way to everywhere.
func configurePod(pod netns.NsHandle, n Node, ip netip.Addr) error {
	links, err := netlink.NewHandleAt(pod, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink there: %w", err)
	}
	defer links.Close()
	lo, err := links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	link, err := links.LinkByName(podLink)
	if err != nil {
		return err
	}
	if err := links.AddrAdd(link, &netlink.Addr{IPNet: single(ip)}); err != nil {
		return fmt.Errorf("set address %s: %w", ip, err)
	}
	if err := links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := links.NeighSet(neighbour(link, n.Gateway)); err != nil {
		return fmt.Errorf("set neighbour %s: %w", n.Gateway, err)
	}
	index := link.Attrs().Index
	gateway := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: single(n.Gateway)}
	if err := links.RouteAdd(gateway); err != nil {
		return fmt.Errorf("add route to the gateway %s: %w", n.Gateway, err)
	}
	if err := links.RouteAdd(&netlink.Route{LinkIndex: index, Gw: n.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// neighbour says who is at the other end, so that nobody has to ask, and nobody can answer falsely.
func neighbour(link netlink.Link, ip netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: ip.AsSlice(), HardwareAddr: hardwareAddr(ip),
	}
}

// Detach removes the host's end; the pod's end and the route go with it.
func (k *kernelLinks) Detach(_ context.Context, podUID string) error {
	link, err := k.links.LinkByName(hostLink(podUID))
	if err == nil {
		err = k.links.LinkDel(link)
	}
	// The pair also vanishes by itself with the pod's namespace, at any moment.
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", hostLink(podUID), err)
	}
	return nil
}

// Existing reads the aliases of the host's ends.
func (k *kernelLinks) Existing(context.Context) ([]Attachment, error) {
	ends, err := k.ends()
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for _, end := range ends {
		if a, ok := parseAlias(end.Attrs().Alias); ok {
			out = append(out, a)
		}
	}
	return out, nil
}

// ends lists the host's ends of all pods, complete or not.
func (k *kernelLinks) ends() ([]netlink.Link, error) {
	all, err := k.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var ends []netlink.Link
	for _, link := range all {
		if link.Type() == "veth" && strings.HasPrefix(link.Attrs().Name, linkPrefix) {
			ends = append(ends, link)
		}
	}
	return ends, nil
}

// sweepHalfMade removes pairs that a predecessor made and did not complete.
func (k *kernelLinks) sweepHalfMade() error {
	ends, err := k.ends()
	if err != nil {
		return err
	}
	for _, end := range ends {
		if _, complete := parseAlias(end.Attrs().Alias); complete {
			continue
		}
		if err := k.links.LinkDel(end); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove unfinished %s: %w", end.Attrs().Name, err)
		}
	}
	return nil
}

// Teardown removes every pair, the fences, the node's address and the masquerading. Forwarding stays on: others may
// rely on it by now.
func (k *kernelLinks) Teardown(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ends, err := k.ends()
	if err != nil {
		return err
	}
	errs := []error{removeMasquerade()}
	for _, end := range ends {
		// An end also vanishes by itself, with its pod's namespace.
		if err := k.links.LinkDel(end); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", end.Attrs().Name, err))
		}
	}
	for _, r := range fences(k.node) {
		if err := k.links.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove fence %s: %w", r.Dst, err))
		}
	}
	lo, err := k.links.LinkByName("lo")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	err = k.links.AddrDel(lo, &netlink.Addr{IPNet: single(k.node.Gateway)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		errs = append(errs, fmt.Errorf("remove address %s: %w", k.node.Gateway, err))
	}
	return errors.Join(errs...)
}

// hostLink names the host's end of a pod's veth pair.
func hostLink(podUID string) string {
	sum := sha256.Sum256([]byte(podUID))
	return linkPrefix + hex.EncodeToString(sum[:6]) // 15 bytes, the most an interface name can have
}

func parseAlias(alias string) (Attachment, bool) {
	rest, ours := strings.CutPrefix(alias, aliasPrefix)
	podUID, text, ok := strings.Cut(rest, " ")
	ip, err := netip.ParseAddr(text)
	return Attachment{PodUID: podUID, IP: ip}, ours && ok && err == nil
}

// hardwareAddr derives a locally administered MAC address from an IPv4 address.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	four := ip.As4()
	return append(net.HardwareAddr{0x0a, 0x58}, four[:]...)
}

// single is a prefix of one address.
func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}
