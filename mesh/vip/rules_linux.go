package vip

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layoutVersion changes with the rules below, so that a successor with other rules replaces the table.
const layoutVersion = 1

// layoutName is the name of an empty chain that tells which rules the table has, for which node.
func layoutName(node Node) string {
	// The node's addresses, name and zone are in the elements alone.
	text := fmt.Sprint(layoutVersion, node.PodCIDR.Masked(), node.ClusterCIDR.Masked(), node.ServiceCIDR.Masked())
	sum := sha256.Sum256([]byte(text))
	return "layout-" + hex.EncodeToString(sum[:8])
}

// The ruleset, with nftables' own words (n and t vary, one chain per shape that is in use):
//
//	chain prerouting  { nat prerouting dstnat
//	    ip daddr . l4proto . dport @guarded ip daddr . l4proto . dport . ip saddr != @sources drop
//	    ip saddr != <cluster> ip daddr . l4proto . dport vmap @outside
//	    ip daddr . l4proto . dport vmap @vips }
//	chain output      { nat output dstnat: ip daddr . l4proto . dport vmap @vips }
//	chain lb_n        { dnat to ip daddr . l4proto . dport . numgen random mod n map @endpoints
//	    dnat to ip daddr . l4proto . dport . 0 map @endpoints }
//	chain local_n     { the same with numgen offset 65536 }
//	chain lb_n_sticky_t {
//	    saddr . daddr . l4proto . dport map @affinity → target; daddr . l4proto . dport . target @sticky
//	        update @affinity timeout t; dnat to target
//	    daddr . l4proto . dport . numgen random mod n map @endpoints → target
//	        delete @affinity; update @affinity timeout t; dnat to target }
//	chain postrouting { nat postrouting srcnat
//	    ip saddr . ip daddr @hairpin snat to <gateway>
//	    ip saddr != <cluster> ip daddr <cluster> ip daddr != <pods> snat to <gateway>
//	    ip saddr != <cluster> ip daddr != <cluster> oif != lo ct status dnat masquerade }
//	chain refuse-*    { filter prerouting after dstnat, output
//	    ip daddr <services> reject
//	    ct state new ip daddr . l4proto . dport @refused reject }
//
// The second rule of lb_n is for a packet that is on its way while n shrinks: it may be sent to the chain by the old
// map and then look for a target in the new one.
//
// Why source addresses are rewritten only there: a pod that reaches itself through a Service must not answer itself
// directly; the tunnel carries pod addresses only; and what was sent on to an address outside the pod network must
// come back the same way. Everybody else keeps their source address, since a pod's answers pass its node anyway.

// Registers of 4 bytes each, in the order of a key's parts. What one rule loads, the next one does not see.
const (
	regSource   = unix.NFT_REG32_00 + iota // ip saddr
	regDest                                // ip daddr
	regProtocol                            // l4proto
	regPort                                // dport
	regTarget                              // random index, then the target's address
	regTargetPort
)

const (
	sourceOffset      = 12 // in the IPv4 header
	destinationOffset = 16
	portOffset        = 2 // in the TCP, UDP and SCTP header
)

// mapSets are the named sets of the table.
type mapSets struct {
	table                                                                          *nftables.Table
	vips, outside, refused, endpoints, sticky, affinity, hairpin, guarded, sources *nftables.Set
}

func newMaps() mapSets {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	front := []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService}
	target := []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeInetService}
	concat := func(parts ...[]nftables.SetDatatype) nftables.SetDatatype {
		var all []nftables.SetDatatype
		for _, p := range parts {
			all = append(all, p...)
		}
		return nftables.MustConcatSetType(all...)
	}
	address := []nftables.SetDatatype{nftables.TypeIPAddr}
	set := func(id uint32, name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: table, ID: id, Name: name, KeyType: key, Concatenation: true}
	}
	m := mapSets{
		table:     table,
		vips:      set(1, "vips", concat(front)),
		outside:   set(2, "outside", concat(front)),
		refused:   set(3, "refused", concat(front)),
		endpoints: set(4, "endpoints", concat(front, []nftables.SetDatatype{nftables.TypeInteger})),
		sticky:    set(5, "sticky", concat(front, target)),
		affinity:  set(6, "affinity", concat(address, front)),
		hairpin:   set(7, "hairpin", concat(address, address)),
		guarded:   set(8, "guarded", concat(front)),
		sources:   set(9, "sources", concat(front, address)),
	}
	m.sources.Interval = true
	for _, verdicts := range []*nftables.Set{m.vips, m.outside} {
		verdicts.IsMap, verdicts.DataType = true, nftables.TypeVerdict
	}
	for _, targets := range []*nftables.Set{m.endpoints, m.affinity} {
		targets.IsMap, targets.DataType = true, concat(target)
	}
	m.affinity.HasTimeout, m.affinity.Dynamic, m.affinity.Size = true, true, affinitySize
	return m
}

// affinitySize is the most clients remembered. Without a size the kernel's limit would be 65,535.
const affinitySize = 1 << 20

func (k *kernelRuleset) addMaps() error {
	m := k.maps
	for _, s := range []*nftables.Set{m.vips, m.outside, m.refused, m.endpoints, m.sticky, m.affinity, m.hairpin, m.guarded, m.sources} {
		if err := k.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	return nil
}

// addHairpin fills the set with every pod address of the node paired with itself: a constant, whatever runs.
func (k *kernelRuleset) addHairpin(node Node) error {
	var pairs []netip.Addr
	for addr := node.PodCIDR.Masked().Addr(); node.PodCIDR.Contains(addr); addr = addr.Next() {
		pairs = append(pairs, addr)
	}
	return inChunks(k.conn.SetAddElements, k.maps.hairpin, pairs, func(addr netip.Addr) nftables.SetElement {
		return nftables.SetElement{Key: append(addr.AsSlice(), addr.AsSlice()...)}
	})
}

func (k *kernelRuleset) addBaseChains(node Node) {
	m := k.maps
	nat := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return k.conn.AddChain(&nftables.Chain{
			Table: m.table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority,
		})
	}
	pre := nat("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	k.addRule(pre, loadFront(), load(regTarget, sourceOffset), []expr.Any{
		&expr.Lookup{SourceRegister: regDest, SetID: m.guarded.ID, SetName: m.guarded.Name},
		&expr.Lookup{SourceRegister: regDest, SetID: m.sources.ID, SetName: m.sources.Name, Invert: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})
	k.addRule(pre, inPrefix(sourceOffset, node.ClusterCIDR, expr.CmpOpNeq), loadFront(), verdictFrom(m.outside))
	k.addRule(pre, loadFront(), verdictFrom(m.vips))
	out := nat("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	k.addRule(out, loadFront(), verdictFrom(m.vips))

	gateway := node.Gateway().As4()
	snat := []expr.Any{
		&expr.Immediate{Register: regDest, Data: gateway[:]},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regDest, FullyRandom: true},
	}
	post := nat("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	k.addRule(post, load(regSource, sourceOffset), load(regDest, destinationOffset),
		[]expr.Any{&expr.Lookup{SourceRegister: regSource, SetID: m.hairpin.ID, SetName: m.hairpin.Name}}, snat)
	k.addRule(post,
		inPrefix(sourceOffset, node.ClusterCIDR, expr.CmpOpNeq),
		inPrefix(destinationOffset, node.ClusterCIDR, expr.CmpOpEq),
		inPrefix(destinationOffset, node.PodCIDR, expr.CmpOpNeq), snat)
	k.addRule(post,
		inPrefix(sourceOffset, node.ClusterCIDR, expr.CmpOpNeq),
		inPrefix(destinationOffset, node.ClusterCIDR, expr.CmpOpNeq),
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: interfaceName("lo")},
		},
		ctBits(expr.CtKeySTATUS, ctStatusDNAT),
		[]expr.Any{&expr.Masq{FullyRandom: true}})

	k.addRefusal("refuse-prerouting", nftables.ChainHookPrerouting, node)
	k.addRefusal("refuse-output", nftables.ChainHookOutput, node)
}

// addRefusal makes a filter chain that tells clients at once that nobody answers: a reset for TCP, "port unreachable"
// for the rest. It comes before routing, which might have an answer of its own for addresses of no interface. A packet that still has a cluster IP as its destination here was not translated; left alone, the
// route to the service range would send it round the loopback until its TTL is used up.
func (k *kernelRuleset) addRefusal(name string, hook *nftables.ChainHook, node Node) {
	chain := k.conn.AddChain(&nftables.Chain{
		Table: k.maps.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
		Priority: nftables.ChainPriorityRef(afterDNAT),
	})
	isTCP := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(TCP)}},
	}
	reset := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	unreachable := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}}
	refused := []expr.Any{
		&expr.Lookup{SourceRegister: regDest, SetID: k.maps.refused.ID, SetName: k.maps.refused.Name},
	}
	services := inPrefix(destinationOffset, node.ServiceCIDR, expr.CmpOpEq)
	isNew := ctBits(expr.CtKeySTATE, expr.CtStateBitNEW)

	k.addRule(chain, services, isTCP, reset)
	k.addRule(chain, services, unreachable)
	k.addRule(chain, isNew, isTCP, loadFront(), refused, reset)
	k.addRule(chain, isNew, loadFront(), refused, unreachable)
}

const (
	afterDNAT           = -90 // translation of destinations is at -100
	dynsetDelete        = 2   // NFT_DYNSET_OP_DELETE of the kernel's nf_tables.h
	icmpPortUnreachable = 3
	ctStatusDNAT        = 1 << 5 // IPS_DST_NAT of the kernel's nf_conntrack_common.h
)

// addChain makes a chain that picks a target.
func (k *kernelRuleset) addChain(c Chain) {
	m := k.maps
	chain := k.conn.AddChain(k.chain(c))
	start := uint32(0)
	if c.Local {
		start = localIndex
	}
	target := &expr.Lookup{
		SourceRegister: regDest, DestRegister: regTarget, IsDestRegSet: true,
		SetID: m.endpoints.ID, SetName: m.endpoints.Name,
	}
	pick := []expr.Any{
		&expr.Numgen{Register: regTarget, Modulus: uint32(c.Count), Type: unix.NFT_NG_RANDOM, Offset: start}, target,
	}
	firstOne := []expr.Any{&expr.Immediate{Register: regTarget, Data: nativeUint32(start)}, target}
	dnat := []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regTarget, RegProtoMin: regTargetPort, Specified: true,
	}}
	if c.Affinity == 0 {
		k.addRule(chain, loadFront(), pick, dnat)
		k.addRule(chain, loadFront(), firstOne, dnat)
		return
	}
	remember := &expr.Dynset{
		SrcRegKey: regSource, SrcRegData: regTarget, SetID: m.affinity.ID, SetName: m.affinity.Name,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: time.Duration(c.Affinity) * time.Second,
	}
	// An update of an existing element renews its time and leaves its data alone: the old one has to go first. The
	// kernel wants a data register also for that.
	forget := &expr.Dynset{
		SrcRegKey: regSource, SrcRegData: regTarget, SetID: m.affinity.ID, SetName: m.affinity.Name,
		Operation: dynsetDelete,
	}
	recall := []expr.Any{
		&expr.Lookup{
			SourceRegister: regSource, DestRegister: regTarget, IsDestRegSet: true,
			SetID: m.affinity.ID, SetName: m.affinity.Name,
		},
		// The target may have left since: the key is the front and the target just recalled.
		&expr.Lookup{SourceRegister: regDest, SetID: m.sticky.ID, SetName: m.sticky.Name},
	}
	k.addRule(chain, load(regSource, sourceOffset), loadFront(), recall, []expr.Any{remember}, dnat)
	k.addRule(chain, load(regSource, sourceOffset), loadFront(), pick, []expr.Any{forget, remember}, dnat)
	k.addRule(chain, loadFront(), firstOne, dnat)
}

func (k *kernelRuleset) chain(c Chain) *nftables.Chain {
	return &nftables.Chain{Table: k.maps.table, Name: c.Name()}
}

func (k *kernelRuleset) addRule(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	k.conn.AddRule(&nftables.Rule{Table: k.maps.table, Chain: chain, Exprs: all})
}

// load puts an address of the IPv4 header into register.
func load(register, offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv4len},
	}
}

// loadFront puts what the client dials into the registers from regDest on: a FrontKey.
func loadFront() []expr.Any {
	return append(load(regDest, destinationOffset),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regProtocol},
		&expr.Payload{DestRegister: regPort, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
	)
}

func verdictFrom(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{
		SourceRegister: regDest, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetID: set.ID, SetName: set.Name,
	}}
}

// inPrefix compares the address at offset with an IPv4 prefix.
func inPrefix(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	return append(load(1, offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: net.IPv4len, Mask: ipNet(p).Mask, Xor: make([]byte, net.IPv4len)},
		&expr.Cmp{Op: op, Register: 1, Data: network[:]},
	)
}

// ctBits matches packets whose connection has one of the bits set.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: nativeUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// interfaceName is a name as the kernel compares it: padded with zeros.
func interfaceName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}
