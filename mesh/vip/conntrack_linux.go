package vip

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A UDP client that keeps sending from one port is one endless connection to the kernel: its first packet decided the
// target, and only deleting the conntrack entry makes the next packet choose again. TCP connections end by themselves.

// staleFlows matches UDP entries that lead from a front to a target for which stale says so.
type staleFlows struct {
	stale func(StickyKey) bool
}

// MatchConntrackFlow implements netlink's filter.
func (f staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != uint8(UDP) {
		return false
	}
	dialled, target := addrPort(flow.Forward.DstIP, flow.Forward.DstPort), addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	return dialled != target && f.stale(StickyKey{
		Front: FrontKey{Addr: dialled.Addr(), Protocol: UDP, Port: dialled.Port()}, Target: target,
	})
}

// forgetGone deletes the entries that lead to targets just removed. It reads the whole table: once per batch.
func (k *kernelRuleset) forgetGone(gone []StickyKey) error {
	if len(gone) == 0 {
		return nil
	}
	set := make(map[StickyKey]struct{}, len(gone))
	for _, key := range gone {
		set[key] = struct{}{}
	}
	return k.deleteFlows(func(key StickyKey) bool {
		_, ok := set[key]
		return ok
	})
}

// forgetStale deletes the entries that lead from one of our fronts to what is not its target any more, whenever that
// happened: after a restart nobody knows what changed meanwhile.
func (k *kernelRuleset) forgetStale(s State) error {
	targets := map[StickyKey]struct{}{}
	fronts := map[FrontKey]struct{}{}
	for key, target := range s.Endpoints {
		if key.Front.Protocol == UDP {
			targets[StickyKey{key.Front, target}] = struct{}{}
			fronts[key.Front] = struct{}{}
		}
	}
	if len(fronts) == 0 {
		return nil
	}
	return k.deleteFlows(func(key StickyKey) bool {
		_, ours := fronts[key.Front]
		_, current := targets[key]
		return ours && !current
	})
}

func (k *kernelRuleset) deleteFlows(stale func(StickyKey) bool) error {
	if _, err := k.links.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, staleFlows{stale}); err != nil {
		return fmt.Errorf("delete conntrack entries of UDP endpoints that are gone: %w", err)
	}
	return nil
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip) // no address: equals no front
	return netip.AddrPortFrom(addr.Unmap(), port)
}
