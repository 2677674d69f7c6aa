package vip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tableName = "shoal-services"

	// Elements per message: one attribute holds at most 64 KiB, and 3,000 elements of the largest kind overflow it,
	// which the kernel reports as ENOENT.
	elementChunk = 1000
	// Socket buffer, bytes: a transaction is sent in one piece, and the default of 208 KiB is too small for it from
	// about 1,000 Services on.
	socketBuffer = 64 << 20
)

// kernelRuleset is the nftables table of the network namespace in which hostRuleset was called.
type kernelRuleset struct {
	mu    sync.Mutex
	conn  *nftables.Conn
	links *netlink.Handle // routes and conntrack
	node  Node
	maps  mapSets
	idle  []Chain // to which nothing leads any more; deleted with the next batch
}

func hostRuleset() (Ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *nl.Conn) error {
		// Forced sizes need CAP_NET_ADMIN, as nftables does.
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink: %w", err), conn.CloseLasting())
	}
	return &kernelRuleset{conn: conn, links: links, maps: newMaps()}, nil
}

// Replace makes the table what s says. A predecessor's table with the same rules is adopted: only the elements that
// differ are changed, and clients keep their affinity. Otherwise the whole table is replaced in one transaction.
func (k *kernelRuleset) Replace(_ context.Context, node Node, s State) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.routeServices(node); err != nil {
		return err
	}
	k.node = node
	if have, base, err := k.read(); err == nil && strings.Contains(base, " "+layoutName(node)+":") {
		if k.apply(Diff(have, s)) == nil {
			return k.forgetStale(s)
		}
	}
	if err := k.install(node, s); err != nil {
		return err
	}
	return k.forgetStale(s)
}

func (k *kernelRuleset) install(node Node, s State) error {
	k.idle = nil
	table := k.maps.table
	k.conn.AddTable(table)
	k.conn.DelTable(table)
	k.conn.AddTable(table)
	if err := k.addMaps(); err != nil {
		return err
	}
	k.addBaseChains(node)
	k.conn.AddChain(&nftables.Chain{Table: table, Name: layoutName(node)})
	for chain := range s.Chains {
		k.addChain(chain)
	}
	if err := k.stageElements(Diff(NewState(), s).Add, k.conn.SetAddElements); err != nil {
		return err
	}
	if err := k.addHairpin(node); err != nil {
		return err
	}
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("install nftables table %s with %d endpoints: %w", tableName, len(s.Endpoints), err)
	}
	return nil
}

// Apply changes elements in one transaction, then makes UDP clients let go of targets that are gone.
func (k *kernelRuleset) Apply(_ context.Context, c Changes) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.apply(c); err != nil {
		return err
	}
	return k.forgetGone(c.Gone)
}

// apply makes new chains in a transaction before the one that leads packets there, and deletes unused ones after it,
// with the next batch. A packet on its way during a commit may see maps as they are after it and chains as they were
// before: such a chain would be empty for it.
func (k *kernelRuleset) apply(c Changes) error {
	idle := k.idle
	k.idle = nil
	for _, chain := range idle {
		if !slices.Contains(c.AddChains, chain) {
			// A chain cannot be deleted while it has rules.
			k.conn.FlushChain(k.chain(chain))
			k.conn.DelChain(k.chain(chain))
		}
	}
	for _, chain := range c.AddChains {
		if !slices.Contains(idle, chain) {
			k.addChain(chain)
		}
	}
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("change chains of nftables table %s: %w", tableName, err)
	}
	k.idle = c.DeleteChains
	if err := k.stageElements(c.Delete, k.conn.SetDeleteElements); err != nil {
		return err
	}
	if err := k.stageElements(c.Add, k.conn.SetAddElements); err != nil {
		return err
	}
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("change nftables table %s: %w", tableName, err)
	}
	return nil
}

func (k *kernelRuleset) stageElements(e Elements, do func(*nftables.Set, []nftables.SetElement) error) error {
	return errors.Join(
		inChunks(do, k.maps.vips, e.Vips, encodeVerdict),
		inChunks(do, k.maps.outside, e.Outside, encodeVerdict),
		inChunks(do, k.maps.refused, e.Refused, encodeKey),
		inChunks(do, k.maps.endpoints, e.Endpoints, encodeEndpoint),
		inChunks(do, k.maps.sticky, e.Sticky, encodeSticky),
		inChunks(do, k.maps.guarded, e.Guarded, encodeKey),
		inChunks(do, k.maps.sources, e.Sources, encodeSource),
	)
}

func inChunks[E any](
	do func(*nftables.Set, []nftables.SetElement) error, set *nftables.Set, all []E, encode func(E) nftables.SetElement,
) error {
	for len(all) > 0 {
		n := min(len(all), elementChunk)
		elements := make([]nftables.SetElement, n)
		for i, e := range all[:n] {
			elements[i] = encode(e)
		}
		if err := do(set, elements); err != nil {
			return fmt.Errorf("encode elements of %s: %w", set.Name, err)
		}
		all = all[n:]
	}
	return nil
}

// Remove deletes the table and the route.
func (k *kernelRuleset) Remove(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn.AddTable(k.maps.table) // so that deleting it cannot fail
	k.conn.DelTable(k.maps.table)
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", tableName, err)
	}
	if !k.node.ServiceCIDR.IsValid() {
		return nil
	}
	route, err := k.serviceRoute(k.node)
	if err != nil {
		return err
	}
	if err := k.links.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route to %s: %w", k.node.ServiceCIDR, err)
	}
	return nil
}

// routeServices gives the node's own processes a way to cluster IPs, which exist on no interface: without a route the
// kernel would refuse before the rules are asked. The source is the node's address in the pod network, so that answers
// from pods on other nodes find back through the tunnel.
func (k *kernelRuleset) routeServices(node Node) error {
	route, err := k.serviceRoute(node)
	if err != nil {
		return err
	}
	if err := k.links.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s from %s (is the pod network set up?): %w", node.ServiceCIDR, node.Gateway(), err)
	}
	return nil
}

func (k *kernelRuleset) serviceRoute(node Node) (*netlink.Route, error) {
	lo, err := k.links.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback: %w", err)
	}
	if err := k.links.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring loopback up: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(node.ServiceCIDR), Src: node.Gateway().AsSlice(),
		Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC,
	}, nil
}

var _ Ruleset = (*kernelRuleset)(nil)
