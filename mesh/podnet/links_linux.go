package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	aliasPrefix = "shoal pod " // followed by the pod's UID and address: what adoption reads
	podLink     = "eth0"
	queueLength = 1000 // packets
)

// kernelLinks works on the network namespace in which hostLinks was called.
type kernelLinks struct {
	links *netlink.Handle

	mu     sync.Mutex
	bridge Bridge
	index  int // of the bridge
}

func hostLinks() (Links, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &kernelLinks{links: links}, nil
}

// Setup makes the bridge, switches forwarding on and installs the masquerading. It must run in a thread of the network
// namespace, because /proc/sys/net shows that of the caller.
func (k *kernelLinks) Setup(_ context.Context, b Bridge) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, hardwareAddr(b.Gateway.Addr())
	if err := k.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create bridge: %w", err)
	}
	link, err := k.links.LinkByName(b.Name)
	if err != nil {
		return err
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s exists and is a %s, not a bridge", b.Name, link.Type())
	}
	k.bridge, k.index = b, link.Attrs().Index
	if err := k.links.LinkSetMTU(link, b.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", b.MTU, err)
	}
	if err := k.address(link, b.Gateway); err != nil {
		return err
	}
	if err := k.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring bridge up: %w", err)
	}
	if err := setSysctls(b.Name); err != nil {
		return err
	}
	if err := installMasquerade(b); err != nil {
		return err
	}
	return k.sweepHalfMade()
}

// address gives link exactly one IPv4 address.
func (k *kernelLinks) address(link netlink.Link, want netip.Prefix) error {
	have, err := k.links.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	wanted := &netlink.Addr{IPNet: ipNet(want)}
	for _, a := range have {
		if a.IPNet.String() == wanted.IPNet.String() {
			continue
		}
		if err := k.links.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	if err := k.links.AddrReplace(link, wanted); err != nil {
		return fmt.Errorf("set address %s: %w", want, err)
	}
	return nil
}

// Attach makes the veth pair with one end in the pod's namespace already. The alias comes last: it marks a
// connection as complete.
func (k *kernelLinks) Attach(_ context.Context, a Attachment) error {
	k.mu.Lock()
	b, index := k.bridge, k.index
	k.mu.Unlock()
	pod, err := netns.GetFromPath(a.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", a.NetNS, err)
	}
	defer pod.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = hostLink(a.PodUID), b.MTU, index
	attrs.TxQLen, attrs.NumTxQueues, attrs.NumRxQueues = queueLength, 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = podLink, netlink.NsFd(pod), uint32(b.MTU)
	veth.PeerHardwareAddr = hardwareAddr(a.IP)
	if err := k.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth pair %s: %w", attrs.Name, err)
	}
	if err := configurePod(pod, b, a.IP); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", podLink, err)
	}
	link, err := k.links.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := k.links.LinkSetIsolated(link, true); err != nil {
		return fmt.Errorf("isolate bridge port: %w", err)
	}
	if err := k.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", attrs.Name, err)
	}
	if err := k.links.LinkSetAlias(link, aliasPrefix+a.PodUID+" "+a.IP.String()); err != nil {
		return fmt.Errorf("mark %s: %w", attrs.Name, err)
	}
	return nil
}

// configurePod sets up the pod's end: its address without neighbours, the node as its way to everywhere.
func configurePod(pod netns.NsHandle, b Bridge, ip netip.Addr) error {
	links, err := netlink.NewHandleAt(pod, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink there: %w", err)
	}
	defer links.Close()
	for _, name := range []string{"lo", podLink} {
		link, err := links.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if name == podLink {
			address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen()))}
			if err := links.AddrAdd(link, address); err != nil {
				return fmt.Errorf("set address %s: %w", ip, err)
			}
		}
		if err := links.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
		if name != podLink {
			continue
		}
		gateway := b.Gateway.Addr()
		neighbour := &netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: ipNet(netip.PrefixFrom(gateway, gateway.BitLen())),
		}
		if err := links.RouteAdd(neighbour); err != nil {
			return fmt.Errorf("add route to the gateway %s: %w", gateway, err)
		}
		everywhere := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
		if err := links.RouteAdd(everywhere); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
	}
	return nil
}

// Detach removes the host's end; the pod's end goes with it.
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

// Existing reads the aliases of the bridge's ports.
func (k *kernelLinks) Existing(context.Context) ([]Attachment, error) {
	ports, err := k.ports()
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for _, port := range ports {
		if a, ok := parseAlias(port.Attrs().Alias); ok {
			out = append(out, a)
		}
	}
	return out, nil
}

func (k *kernelLinks) ports() ([]netlink.Link, error) {
	all, err := k.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var ports []netlink.Link
	for _, link := range all {
		if link.Attrs().MasterIndex == k.index {
			ports = append(ports, link)
		}
	}
	return ports, nil
}

// sweepHalfMade removes ports that a predecessor made and did not complete.
func (k *kernelLinks) sweepHalfMade() error {
	ports, err := k.ports()
	if err != nil {
		return err
	}
	for _, port := range ports {
		if _, complete := parseAlias(port.Attrs().Alias); complete {
			continue
		}
		if err := k.links.LinkDel(port); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove unfinished %s: %w", port.Attrs().Name, err)
		}
	}
	return nil
}

// Teardown removes every port, the bridge and the masquerading. Forwarding stays on: others may rely on it by now.
func (k *kernelLinks) Teardown(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ports, err := k.ports()
	if err != nil {
		return err
	}
	errs := []error{removeMasquerade(k.bridge)}
	for _, port := range ports {
		// A port also vanishes by itself, with its pod's namespace.
		if err := k.links.LinkDel(port); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", port.Attrs().Name, err))
		}
	}
	link, err := k.links.LinkByIndex(k.index)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, k.links.LinkDel(link))
	k.links.Close()
	return errors.Join(errs...)
}

// setSysctls lets packets pass between pods, tunnel and outside.
func setSysctls(bridge string) error {
	for _, s := range []struct{ key, value string }{
		{"ipv4/ip_forward", "1"},
		// All pods are behind one interface, so the node would tell them to talk to each other directly, which the
		// isolated ports forbid.
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/" + bridge + "/send_redirects", "0"},
		// A pod cannot send from an address outside the node's pod range.
		{"ipv4/conf/" + bridge + "/rp_filter", "1"},
	} {
		path := filepath.Join("/proc/sys/net", s.key)
		if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set net/%s to %s: %w", s.key, s.value, err)
		}
	}
	return nil
}

// hostLink names the host's end of a pod's veth pair.
func hostLink(podUID string) string {
	sum := sha256.Sum256([]byte(podUID))
	return "pod" + hex.EncodeToString(sum[:6]) // 15 bytes, the most an interface name can have
}

func parseAlias(alias string) (Attachment, bool) {
	rest, ours := strings.CutPrefix(alias, aliasPrefix)
	podUID, text, ok := strings.Cut(rest, " ")
	ip, err := netip.ParseAddr(text)
	return Attachment{PodUID: podUID, IP: ip}, ours && ok && err == nil
}

// hardwareAddr derives a locally administered MAC address from an IPv4 address, so that the bridge's does not change
// with its ports and a reused pod address does not meet a stale neighbour entry.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	four := ip.As4()
	return append(net.HardwareAddr{0x0a, 0x58}, four[:]...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
