// Package tunnel joins the nodes' pod ranges by WireGuard.
//
// Want says which peers there are and which addresses live behind each; Diff compares it with what the device Has and
// returns one Plan; a Device carries it out in one configuration call. On Linux the kernel's WireGuard is used where
// it exists, otherwise wireguard-go inside this process.
package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// DefaultMTU leaves room for WireGuard's 80 bytes over IPv6 in an Ethernet frame of 1500.
const DefaultMTU = 1420

// ErrConflict says that a wanted peer contradicts another one or itself and was left out.
var ErrConflict = errors.New("tunnel peer left out")

// Peer is one other end of the tunnel.
type Peer struct {
	ID         string         // peer ID, for messages; the device does not know it
	PublicKey  Key            // identity in the tunnel
	Endpoint   netip.AddrPort // where its UDP packets go; invalid: wait until it speaks first
	AllowedIPs []netip.Prefix // what lives behind it: its pod range. Only from there are its packets accepted
}

// Want is the tunnel as it should be.
type Want struct {
	PrivateKey Key
	ListenPort int // UDP
	Peers      []Peer
	Source     netip.Addr // the node's own address in the pod network, preferred source of the routes; may be invalid
}

// Have is the tunnel as the device reports it. Peers have no ID.
type Have struct {
	PrivateKey Key
	ListenPort int
	Peers      []Peer
	Routes     []Route
}

// Route sends one range of addresses into the tunnel.
type Route struct {
	To     netip.Prefix
	Source netip.Addr // invalid: the kernel chooses
}

// Plan is what turns Have into Want. The zero Plan is empty.
type Plan struct {
	PrivateKey *Key // nil: unchanged
	ListenPort *int
	Add        []Peer // unknown to the device
	Update     []Peer // same key, other endpoint or addresses
	Remove     []Key
	AddRoutes  []Route // replaces a route to the same prefix
	DelRoutes  []Route
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return p.PrivateKey == nil && p.ListenPort == nil && len(p.Add)+len(p.Update)+len(p.Remove) == 0 &&
		len(p.AddRoutes)+len(p.DelRoutes) == 0
}

// Admit returns w without the peers that cannot be: our own key, a key twice, a range that overlaps with one behind
// another peer (WireGuard would silently hand it to whoever came last), and a range that holds some peer's endpoint
// (the tunnel would swallow its own packets). The peer with the lower ID keeps what two claim. The error joins one
// ErrConflict per peer left out.
func (w Want) Admit() (Want, error) {
	peers := slices.Clone(w.Peers)
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), slices.Compare(a.PublicKey[:], b.PublicKey[:]))
	})
	var (
		errs   []error
		taken  = map[Key]string{w.PrivateKey.Public(): "this peer"}
		ranges owners
		ends   = endpoints(peers)
		out    = make([]Peer, 0, len(peers))
	)
	for _, p := range peers {
		p.AllowedIPs = normal(p.AllowedIPs)
		if owner, ok := taken[p.PublicKey]; ok {
			errs = append(errs, fmt.Errorf("%w: %s has the key of %s", ErrConflict, p.ID, owner))
			continue
		}
		if clash, owner, ok := ranges.overlap(p.AllowedIPs); ok {
			errs = append(errs, fmt.Errorf("%w: %s claims %s, which overlaps with %s", ErrConflict, p.ID, clash, owner))
			continue
		}
		if clash, ok := swallows(p.AllowedIPs, ends); ok {
			errs = append(errs, fmt.Errorf("%w: %s claims %s, which holds an endpoint of the tunnel", ErrConflict, p.ID, clash))
			continue
		}
		taken[p.PublicKey] = p.ID
		ranges.add(p.AllowedIPs, p.ID)
		out = append(out, p)
	}
	w.Peers = out
	return w, errors.Join(errs...)
}

// Diff returns the Plan that turns have into want. Both sides' orders do not matter; the Plan's lists are sorted.
func Diff(want Want, have Have) Plan {
	var plan Plan
	if want.PrivateKey != have.PrivateKey {
		plan.PrivateKey = &want.PrivateKey
	}
	if want.ListenPort != have.ListenPort {
		plan.ListenPort = &want.ListenPort
	}
	known := make(map[Key]Peer, len(have.Peers))
	for _, p := range have.Peers {
		known[p.PublicKey] = p
	}
	for _, p := range want.Peers {
		before, ok := known[p.PublicKey]
		delete(known, p.PublicKey)
		switch {
		case !ok:
			plan.Add = append(plan.Add, p)
		case !before.same(p):
			plan.Update = append(plan.Update, p)
		}
	}
	for key := range known {
		plan.Remove = append(plan.Remove, key)
	}
	plan.AddRoutes, plan.DelRoutes = diffRoutes(want.routes(), have.Routes)

	slices.SortFunc(plan.Add, byKey)
	slices.SortFunc(plan.Update, byKey)
	slices.SortFunc(plan.Remove, func(a, b Key) int { return slices.Compare(a[:], b[:]) })
	return plan
}

// Apply returns what a device that had h has after plan: the meaning of a Plan, and the device of a simulation.
func (h Have) Apply(plan Plan) Have {
	if plan.PrivateKey != nil {
		h.PrivateKey = *plan.PrivateKey
	}
	if plan.ListenPort != nil {
		h.ListenPort = *plan.ListenPort
	}
	h.Peers = slices.DeleteFunc(slices.Clone(h.Peers), func(p Peer) bool {
		same := func(q Peer) bool { return q.PublicKey == p.PublicKey }
		return slices.Contains(plan.Remove, p.PublicKey) || slices.ContainsFunc(plan.Update, same)
	})
	for _, p := range slices.Concat(plan.Add, plan.Update) {
		h.Peers = append(h.Peers, Peer{PublicKey: p.PublicKey, Endpoint: p.Endpoint, AllowedIPs: normal(p.AllowedIPs)})
	}
	slices.SortFunc(h.Peers, byKey)
	h.Routes = slices.DeleteFunc(slices.Clone(h.Routes), func(r Route) bool {
		replaced := func(a Route) bool { return a.To == r.To }
		return slices.Contains(plan.DelRoutes, r) || slices.ContainsFunc(plan.AddRoutes, replaced)
	})
	h.Routes = append(h.Routes, plan.AddRoutes...)
	slices.SortFunc(h.Routes, byPrefix)
	return h
}

// routes are one per range behind a peer.
func (w Want) routes() []Route {
	var routes []Route
	for _, p := range w.Peers {
		for _, to := range normal(p.AllowedIPs) {
			r := Route{To: to}
			if w.Source.IsValid() && w.Source.Is4() == to.Addr().Is4() {
				r.Source = w.Source
			}
			routes = append(routes, r)
		}
	}
	return routes
}

func diffRoutes(want, have []Route) (add, del []Route) {
	known := make(map[netip.Prefix]Route, len(have))
	for _, r := range have {
		known[r.To] = r
	}
	for _, r := range want {
		if before, ok := known[r.To]; !ok || before != r {
			add = append(add, r)
		}
		delete(known, r.To)
	}
	for _, r := range known {
		del = append(del, r)
	}
	slices.SortFunc(add, byPrefix)
	slices.SortFunc(del, byPrefix)
	return add, del
}

// same compares what the device knows of a peer. An endpoint that is not wanted leaves the learned one alone.
func (p Peer) same(want Peer) bool {
	return (!want.Endpoint.IsValid() || p.Endpoint == want.Endpoint) &&
		slices.Equal(normal(p.AllowedIPs), normal(want.AllowedIPs))
}

// normal masks and sorts prefixes, and drops those that lie within another: what is left is disjoint.
func normal(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Masked()
	}
	slices.SortFunc(out, netip.Prefix.Compare) // a prefix comes before all that lie within it
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// endpoints are the addresses of the peers' endpoints, sorted.
func endpoints(peers []Peer) []netip.Addr {
	var out []netip.Addr
	for _, p := range peers {
		if p.Endpoint.IsValid() {
			out = append(out, p.Endpoint.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// swallows finds a range (masked) in which one of the sorted endpoints lies.
func swallows(ranges []netip.Prefix, endpoints []netip.Addr) (netip.Prefix, bool) {
	for _, r := range ranges {
		i, _ := slices.BinarySearchFunc(endpoints, r.Addr(), netip.Addr.Compare)
		if i < len(endpoints) && r.Contains(endpoints[i]) {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// owners finds overlaps among disjoint ranges, kept sorted by first address.
type owners struct {
	ranges []netip.Prefix
	ids    []string
}

func (o *owners) find(p netip.Prefix) int {
	i, _ := slices.BinarySearchFunc(o.ranges, p, netip.Prefix.Compare)
	return i
}

func (o *owners) overlap(prefixes []netip.Prefix) (netip.Prefix, string, bool) {
	for _, p := range prefixes {
		at := o.find(p)
		for _, i := range []int{at - 1, at} { // disjoint ranges: only the neighbours can overlap
			if i >= 0 && i < len(o.ranges) && o.ranges[i].Overlaps(p) {
				return p, o.ids[i], true
			}
		}
	}
	return netip.Prefix{}, "", false
}

func (o *owners) add(prefixes []netip.Prefix, id string) {
	for _, p := range prefixes {
		at := o.find(p)
		o.ranges = slices.Insert(o.ranges, at, p)
		o.ids = slices.Insert(o.ids, at, id)
	}
}

func byKey(a, b Peer) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) }

func byPrefix(a, b Route) int { return a.To.Compare(b.To) }

// PeerStatus is what the device knows about a peer's traffic.
type PeerStatus struct {
	ID             string // empty if the device has a peer that was never wanted
	PublicKey      Key
	Endpoint       netip.AddrPort
	LastHandshake  time.Time // zero: none yet
	Received, Sent int64     // bytes
	AllowedIPs     []netip.Prefix
}
