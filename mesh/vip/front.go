package vip

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols a Service can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "protocol-" + strconv.Itoa(int(p))
}

// FrontKey is what a client dials: an address of a Service or of the node.
type FrontKey struct {
	Addr     netip.Addr // IPv4
	Protocol Protocol
	Port     uint16
}

func (k FrontKey) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), k.Protocol)
}

func (k FrontKey) compare(o FrontKey) int {
	return cmp.Or(k.Addr.Compare(o.Addr), cmp.Compare(k.Protocol, o.Protocol), cmp.Compare(k.Port, o.Port))
}

// Front is one address and port that answers, and who answers. Fronts are never changed once made.
type Front struct {
	Key FrontKey
	// Targets serve clients in the cluster: pods and the nodes themselves. Sorted, without duplicates.
	Targets []netip.AddrPort
	// DropInside: without Targets, packets are dropped, because the policy Local forbids the endpoints that exist
	// elsewhere. Otherwise they are refused.
	DropInside bool
	// LocalOutside: clients from outside the cluster are served by Local alone (externalTrafficPolicy: Local), and
	// dropped when it is empty while Targets is not.
	LocalOutside bool
	Local        []netip.AddrPort
	// Sources are whom a load balancer's address answers (loadBalancerSourceRanges), IPv4, masked, disjoint and sorted;
	// none means everybody. The node itself is always answered.
	Sources []netip.Prefix
	// Affinity is how long a client stays with the target it has had (sessionAffinity: ClientIP); 0 means each
	// connection is its own.
	Affinity time.Duration
}

func (f *Front) equal(o *Front) bool {
	return f == o || f != nil && o != nil &&
		f.Key == o.Key && f.DropInside == o.DropInside && f.LocalOutside == o.LocalOutside && f.Affinity == o.Affinity &&
		slices.Equal(f.Targets, o.Targets) && slices.Equal(f.Local, o.Local) && slices.Equal(f.Sources, o.Sources)
}

// Chain names a chain that picks one of Count targets at random. There is one per distinct shape, not one per Service:
// the modulus must be a constant of the rule.
type Chain struct {
	Local    bool // picks among the targets for clients from outside
	Count    int
	Affinity int // seconds; 0 means none
}

// Name is the chain's name in the kernel.
func (c Chain) Name() string {
	name := "lb"
	if c.Local {
		name = "local"
	}
	name += "_" + strconv.Itoa(c.Count)
	if c.Affinity > 0 {
		name += "_sticky_" + strconv.Itoa(c.Affinity)
	}
	return name
}

// localIndex is where the numbering of Front.Local starts in the endpoints' map.
const localIndex = 1 << 16

// Verdict is what happens to the first packet of a connection.
type Verdict struct {
	Drop  bool
	Chain Chain // if not Drop
}

func (v Verdict) String() string {
	if v.Drop {
		return "drop"
	}
	return "goto " + v.Chain.Name()
}

// EndpointKey is a front's n-th target, or its n-th local one from localIndex on.
type EndpointKey struct {
	Front FrontKey
	Index uint32
}

// StickyKey says that a front with affinity may still send clients to this target.
type StickyKey struct {
	Front  FrontKey
	Target netip.AddrPort
}

// SourceKey says that clients from this range may use a guarded front.
type SourceKey struct {
	Front  FrontKey
	Source netip.Prefix
}

// inside is the verdict for clients in the cluster; false: nothing matches, so the packet is refused.
func (f *Front) inside() (Verdict, bool) {
	if len(f.Targets) > 0 {
		return Verdict{Chain: Chain{Count: len(f.Targets), Affinity: f.affinitySeconds()}}, true
	}
	return Verdict{Drop: true}, f.DropInside
}

// outside is the verdict for clients from outside where it differs.
func (f *Front) outside() (Verdict, bool) {
	if !f.LocalOutside {
		return Verdict{}, false
	}
	if len(f.Local) > 0 {
		return Verdict{Chain: Chain{Local: true, Count: len(f.Local), Affinity: f.affinitySeconds()}}, true
	}
	return Verdict{Drop: true}, len(f.Targets) > 0
}

func (f *Front) affinitySeconds() int { return int(f.Affinity / time.Second) }

// refused reports whether nobody at all answers.
func (f *Front) refused() bool {
	_, inside := f.inside()
	_, outside := f.outside()
	return !inside && !outside
}
