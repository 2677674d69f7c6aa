package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// underlay is the network that joins the hosts of a lab: a bridge in a namespace of its own, and one cable to each host.
type underlay struct {
	name   string // of its namespace, and prefix of the hosts' ones
	prefix netip.Prefix
	ns     netns.NsHandle
	link   *netlink.Handle
}

// host is one machine of the lab as the network sees it.
type host struct {
	name    string // of its namespace
	address netip.Addr
	cable   string // its end of the cable on the bridge's side
	ns      netns.NsHandle
}

// newUnderlay makes the bridge. The prefix exists only inside namespaces.
func newUnderlay(name string, prefix netip.Prefix) (*underlay, error) {
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	u := &underlay{name: name, prefix: prefix, ns: ns}
	if u.link, err = netlink.NewHandleAt(ns); err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink in %s: %w", name, err), u.close())
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "underlay"}}
	if err := u.link.LinkAdd(bridge); err != nil {
		return nil, errors.Join(fmt.Errorf("adding the underlay bridge: %w", err), u.close())
	}
	if err := raise(u.link, "underlay"); err != nil {
		return nil, errors.Join(err, u.close())
	}
	return u, nil
}

// address is that of host number n.
func (u *underlay) address(n int) netip.Addr {
	address := u.prefix.Addr()
	for range n + 9 {
		address = address.Next()
	}
	return address
}

// plug adds host number n (1, 2, …) and its cable.
func (u *underlay) plug(name string, n int) (*host, error) {
	address := u.address(n)
	ns, err := newNamespace(u.name + "-" + name)
	if err != nil {
		return nil, err
	}
	h := &host{name: u.name + "-" + name, address: address, cable: "to-" + name, ns: ns}
	if err := u.connect(h); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting %s to the underlay: %w", name, err), h.close())
	}
	return h, nil
}

func (u *underlay) connect(h *host) error {
	bridge, err := u.link.LinkByName("underlay")
	if err != nil {
		return err
	}
	cable := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: h.cable, MasterIndex: bridge.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(h.ns)),
	}
	if err := u.link.LinkAdd(cable); err != nil {
		return err
	}
	if err := raise(u.link, h.cable); err != nil {
		return err
	}
	inside, eth0, err := h.enter()
	if err != nil {
		return err
	}
	defer inside.Close()
	address := &netlink.Addr{IPNet: &net.IPNet{IP: h.address.AsSlice(), Mask: net.CIDRMask(u.prefix.Bits(), 32)}}
	if err := inside.AddrAdd(eth0, address); err != nil {
		return err
	}
	if err := raise(inside, "lo"); err != nil {
		return err
	}
	return raise(inside, "eth0")
}

// enter opens rtnetlink in the host's namespace, for the caller to close, and finds its end of the cable.
func (h *host) enter() (inside *netlink.Handle, eth0 netlink.Link, err error) {
	if inside, err = netlink.NewHandleAt(h.ns); err != nil {
		return nil, nil, err
	}
	if eth0, err = inside.LinkByName("eth0"); err != nil {
		inside.Close()
		return nil, nil, fmt.Errorf("finding the cable inside of %s: %w", h.name, err)
	}
	return inside, eth0, nil
}

// readdress replaces a host's address.
func (h *host) readdress(address netip.Addr, bits int) error {
	inside, eth0, err := h.enter()
	if err != nil {
		return err
	}
	defer inside.Close()
	mask := net.CIDRMask(bits, 32)
	err = errors.Join(
		inside.AddrDel(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: h.address.AsSlice(), Mask: mask}}),
		inside.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: mask}}),
	)
	if err == nil {
		h.address = address
	}
	return err
}

// cut takes a host off the network, as when its power fails.
func (u *underlay) cut(h *host) error {
	cable, err := u.link.LinkByName(h.cable)
	if err != nil {
		return fmt.Errorf("finding the cable of %s: %w", h.name, err)
	}
	return u.link.LinkSetDown(cable)
}

// mend undoes cut.
func (u *underlay) mend(h *host) error { return raise(u.link, h.cable) }

// route sends a prefix through another host, replacing an older route to it.
func (h *host) route(prefix netip.Prefix, via netip.Addr) error {
	inside, eth0, err := h.enter()
	if err != nil {
		return err
	}
	defer inside.Close()
	return inside.RouteReplace(&netlink.Route{
		LinkIndex: eth0.Attrs().Index,
		Dst:       &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)},
		Gw:        via.AsSlice(),
	})
}

// dial connects from inside the host's namespace. The address must be literal: a resolver would look outside.
func (h *host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.do(func() (err error) {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// do runs f on a thread that is in the host's namespace. Processes that f starts and sockets that it opens belong there.
func (h *host) do(f func() error) error { return inside(h.ns, h.name, f) }

// do is host.do for the namespace of the bridge.
func (u *underlay) do(f func() error) error { return inside(u.ns, u.name, f) }

func inside(ns netns.NsHandle, name string, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with this goroutine instead of carrying the namespace to others.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			failed <- fmt.Errorf("entering %s: %w", name, err)
			return
		}
		failed <- f()
	}()
	return <-failed
}

func (h *host) close() error {
	return errors.Join(h.ns.Close(), removeNamespace(h.name))
}

func (u *underlay) close() error {
	if u.link != nil {
		u.link.Close()
	}
	return errors.Join(u.ns.Close(), removeNamespace(u.name))
}

func raise(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return err
	}
	return handle.LinkSetUp(link)
}

// newNamespace makes a named network namespace without moving the caller into it.
func newNamespace(name string) (netns.NsHandle, error) {
	type made struct {
		ns  netns.NsHandle
		err error
	}
	result := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // see host.do
		ns, err := netns.NewNamed(name)
		result <- made{ns, err}
	}()
	m := <-result
	if m.err != nil {
		return netns.None(), fmt.Errorf("making network namespace %s: %w (root and CAP_SYS_ADMIN are needed)", name, m.err)
	}
	return m.ns, nil
}

func removeNamespace(name string) error {
	err := netns.DeleteNamed(name)
	if _, statErr := os.Stat(filepath.Join("/run/netns", name)); errors.Is(statErr, os.ErrNotExist) {
		return nil
	}
	return err
}
