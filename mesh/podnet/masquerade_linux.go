package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A packet from one of our pods to outside the cluster leaves with the node's address:
//
//	ip saddr <pod range> ip daddr != <cluster range> masquerade fully-random
func installMasquerade(n Node) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := masqueradeTable()
	conn.AddTable(table)
	conn.DelTable(table) // whatever a predecessor left, gone in the same transaction
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	rule := append(inPrefix(sourceOffset, n.PodCIDR, expr.CmpOpEq), inPrefix(destinationOffset, n.ClusterCIDR, expr.CmpOpNeq)...)
	rule = append(rule, &expr.Masq{FullyRandom: true})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install masquerading (nftables table %s): %w", table.Name, err)
	}
	return nil
}

func removeMasquerade() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(masqueradeTable())
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove masquerading: %w", err)
	}
	return nil
}

func masqueradeTable() *nftables.Table {
	return &nftables.Table{Name: "shoal-pods", Family: nftables.TableFamilyIPv4}
}

// Offsets of the addresses in the IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// inPrefix compares the address at offset with an IPv4 prefix.
func inPrefix(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: network[:]},
	}
}
