package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// interfaceNameMax is IFNAMSIZ without the final zero.
const interfaceNameMax = 15

// linuxDevice is a WireGuard interface in the network namespace in which it was opened.
type linuxDevice struct {
	name      string
	link      netlink.Link
	links     *netlink.Handle
	client    *wgctrl.Client
	userspace *userspace // nil: the kernel's
}

// Open makes the interface, or adopts the kernel's one that a predecessor left, and brings it up. It is created in
// the network namespace of the calling thread. Where the kernel has no WireGuard, wireguard-go runs in this process;
// that needs /dev/net/tun and a socket in /var/run/wireguard.
func Open(_ context.Context, c Config) (*Tunnel, error) {
	if c.Interface == "" || len(c.Interface) > interfaceNameMax {
		return nil, fmt.Errorf("tunnel interface name %q must have 1 to %d bytes", c.Interface, interfaceNameMax)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	d := &linuxDevice{name: c.Interface}
	if err := d.open(c); err != nil {
		return nil, errors.Join(fmt.Errorf("open tunnel %s: %w", c.Interface, err), d.release())
	}
	c.Logger.Info("tunnel is up", "interface", d.name, "userspace", d.Userspace(), "mtu", c.MTU)
	return New(d, c.Logger), nil
}

func (d *linuxDevice) open(c Config) error {
	var err error
	if d.links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	if d.client, err = wgctrl.New(); err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	if err := d.create(c); err != nil {
		return err
	}
	if d.link, err = d.links.LinkByName(c.Interface); err != nil {
		return err
	}
	if err := d.links.LinkSetMTU(d.link, c.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", c.MTU, err)
	}
	if err := d.links.LinkSetUp(d.link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if d.userspace == nil {
		return nil
	}
	// It also notices by itself, a little later; but a port that is in use is only reported while it is up.
	if err := d.userspace.device.Up(); err != nil {
		return fmt.Errorf("open UDP sockets: %w", err)
	}
	return nil
}

// create tries the kernel's WireGuard and falls back to our own process.
func (d *linuxDevice) create(c Config) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.Interface
	err := d.links.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		existing, err := d.links.LinkByName(c.Interface)
		if err != nil {
			return err
		}
		if existing.Type() != "wireguard" {
			return fmt.Errorf("an interface of that name exists already, of type %s: another process uses it", existing.Type())
		}
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("create a WireGuard interface (root or CAP_NET_ADMIN is needed): %w", err)
	}
	kernel := err
	if d.userspace, err = startUserspace(c); err != nil {
		return fmt.Errorf("neither the kernel's WireGuard (%w; module wireguard) nor a tunnel in this process works: %w", kernel, err)
	}
	return nil
}

// Name is the interface's name.
func (d *linuxDevice) Name() string { return d.name }

// Userspace reports whether wireguard-go in this process carries the packets.
func (d *linuxDevice) Userspace() bool { return d.userspace != nil }

// Have reads the interface and its routes.
func (d *linuxDevice) Have() (Have, error) {
	device, err := d.client.Device(d.name)
	if err != nil {
		return Have{}, fmt.Errorf("read WireGuard configuration: %w", err)
	}
	have := Have{PrivateKey: Key(device.PrivateKey), ListenPort: device.ListenPort}
	for _, p := range device.Peers {
		have.Peers = append(have.Peers, Peer{
			PublicKey: Key(p.PublicKey), Endpoint: endpointOf(p), AllowedIPs: prefixesOf(p.AllowedIPs),
		})
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{LinkIndex: d.link.Attrs().Index}
		routes, err := d.links.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF)
		if err != nil {
			return Have{}, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Protocol == unix.RTPROT_KERNEL || r.Dst == nil {
				continue
			}
			source, _ := netip.AddrFromSlice(r.Src) // no source: invalid, as in Want
			have.Routes = append(have.Routes, Route{To: prefixOf(*r.Dst), Source: source.Unmap()})
		}
	}
	return have, nil
}

// Configure carries out plan.
func (d *linuxDevice) Configure(plan Plan) error {
	config := wgtypes.Config{ListenPort: plan.ListenPort}
	if plan.PrivateKey != nil {
		key := wgtypes.Key(*plan.PrivateKey)
		config.PrivateKey = &key
	}
	for _, p := range plan.Add {
		config.Peers = append(config.Peers, peerConfig(p, false))
	}
	for _, p := range plan.Update {
		config.Peers = append(config.Peers, peerConfig(p, true))
	}
	for _, key := range plan.Remove {
		config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
	}
	if err := d.client.ConfigureDevice(d.name, config); err != nil {
		if errno, ok := uapiErrno(err); ok {
			err = errno
		}
		if plan.ListenPort != nil && errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("UDP port %d is in use: %w", *plan.ListenPort, err)
		}
		return fmt.Errorf("configure %d peers: %w", len(config.Peers), err)
	}
	return d.configureRoutes(plan)
}

func (d *linuxDevice) configureRoutes(plan Plan) error {
	for _, r := range plan.DelRoutes {
		if err := d.links.RouteDel(d.route(r)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", r.To, err)
		}
	}
	for _, r := range plan.AddRoutes {
		if err := d.links.RouteReplace(d.route(r)); err != nil {
			return fmt.Errorf("add route to %s from %s: %w", r.To, r.Source, err)
		}
	}
	return nil
}

func (d *linuxDevice) route(r Route) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: d.link.Attrs().Index, Dst: ipNet(r.To), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC,
	}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	return route
}

// Peers reports traffic.
func (d *linuxDevice) Peers() ([]PeerStatus, error) {
	device, err := d.client.Device(d.name)
	if err != nil {
		return nil, fmt.Errorf("read WireGuard configuration: %w", err)
	}
	out := make([]PeerStatus, 0, len(device.Peers))
	for _, p := range device.Peers {
		s := PeerStatus{
			PublicKey: Key(p.PublicKey), Endpoint: endpointOf(p), LastHandshake: p.LastHandshakeTime,
			Received: p.ReceiveBytes, Sent: p.TransmitBytes, AllowedIPs: prefixesOf(p.AllowedIPs),
		}
		if p.LastHandshakeTime.Equal(time.Unix(0, 0)) { // wireguard-go's way to say never
			s.LastHandshake = time.Time{}
		}
		out = append(out, s)
	}
	return out, nil
}

// Close removes the interface.
func (d *linuxDevice) Close() error {
	var err error
	if d.userspace == nil {
		if err = d.links.LinkDel(d.link); err != nil {
			err = fmt.Errorf("remove tunnel %s: %w", d.name, err)
		}
	}
	return errors.Join(err, d.release())
}

func (d *linuxDevice) release() error {
	var err error
	if d.userspace != nil {
		d.userspace.close()
	}
	if d.client != nil {
		err = d.client.Close()
	}
	if d.links != nil {
		d.links.Close()
	}
	return err
}

func peerConfig(p Peer, known bool) wgtypes.PeerConfig {
	config := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.PublicKey), UpdateOnly: known, ReplaceAllowedIPs: true}
	if p.Endpoint.IsValid() {
		config.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
	}
	for _, r := range p.AllowedIPs {
		config.AllowedIPs = append(config.AllowedIPs, *ipNet(r))
	}
	return config
}

func endpointOf(p wgtypes.Peer) netip.AddrPort {
	if p.Endpoint == nil {
		return netip.AddrPort{}
	}
	at := p.Endpoint.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

func prefixesOf(nets []net.IPNet) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(nets))
	for _, n := range nets {
		out = append(out, prefixOf(n))
	}
	return normal(out)
}

func prefixOf(n net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP) // the kernel's own addresses are well-formed
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

var _ Device = (*linuxDevice)(nil)
