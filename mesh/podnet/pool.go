package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrExhausted says that every address of the node's pod range is taken or was released too recently.
var ErrExhausted = errors.New("the node's pod addresses are exhausted")

// ReuseDelay is how long a released address stays unused: long enough for endpoints, DNS answers (TTL 5 s) and
// connections that still mean its previous pod to disappear.
const ReuseDelay = 30 * time.Second

// Pool hands out the addresses of a node's pod range. PURE: the caller says what time it is. The range's first address
// (network), second (gateway) and last (broadcast) are never handed out.
type Pool struct {
	prefix   netip.Prefix
	last     netip.Addr // where the search goes on, so that addresses are reused as late as possible
	holders  map[netip.Addr]string
	released map[netip.Addr]time.Time
}

// NewPool returns a pool over prefix, an IPv4 range of /8 to /30.
func NewPool(prefix netip.Prefix) (*Pool, error) {
	if !prefix.IsValid() || !prefix.Addr().Is4() || prefix.Bits() < 8 || prefix.Bits() > 30 {
		return nil, fmt.Errorf("pod range %s must be IPv4, between /8 and /30", prefix)
	}
	p := &Pool{prefix: prefix.Masked(), holders: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}}
	p.last = p.lastHost() // the first address given is the lowest
	return p, nil
}

// lastHost is the address before the broadcast address.
func (p *Pool) lastHost() netip.Addr {
	first := p.prefix.Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | (1<<(32-p.prefix.Bits()) - 1)
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], last-1)
	return netip.AddrFrom4(out)
}

// Gateway is the node's own address in the range: the first host address.
func (p *Pool) Gateway() netip.Addr { return p.prefix.Addr().Next() }

// Prefix is the whole range.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Allocate gives holder the lowest unused address after the last one given, or ErrExhausted.
func (p *Pool) Allocate(holder string, now time.Time) (netip.Addr, error) {
	waiting := 0
	for addr := p.next(p.last); ; addr = p.next(addr) {
		switch at, wasUsed := p.released[addr]; {
		case p.holders[addr] != "":
		case wasUsed && now.Sub(at) < ReuseDelay:
			waiting++
		default:
			delete(p.released, addr)
			p.holders[addr] = holder
			p.last = addr
			return addr, nil
		}
		if addr == p.last {
			return netip.Addr{}, fmt.Errorf("%w: %s has %d in use and %d released less than %s ago",
				ErrExhausted, p.prefix, len(p.holders), waiting, ReuseDelay)
		}
	}
}

// next goes round the host addresses, the gateway left out. It always comes back to addr.
func (p *Pool) next(addr netip.Addr) netip.Addr {
	following := addr.Next()
	if !p.prefix.Contains(following.Next()) { // following is the broadcast address
		return p.Gateway().Next()
	}
	return following
}

// Claim records an address that holder already has, after a restart. It fails when another holder has it or when it is
// not one the pool could have given.
func (p *Pool) Claim(addr netip.Addr, holder string) error {
	if !p.prefix.Contains(addr) || addr.Compare(p.Gateway()) <= 0 || !p.prefix.Contains(addr.Next()) {
		return fmt.Errorf("%s is not a pod address of %s", addr, p.prefix)
	}
	if other := p.holders[addr]; other != "" && other != holder {
		return fmt.Errorf("%s belongs to pod %s, not to %s", addr, other, holder)
	}
	p.holders[addr] = holder
	delete(p.released, addr)
	if first := len(p.holders) == 1; first || addr.Compare(p.last) > 0 {
		p.last = addr
	}
	return nil
}

// Release gives addr back. Releasing an unused address does nothing.
func (p *Pool) Release(addr netip.Addr, now time.Time) {
	if _, ok := p.holders[addr]; ok {
		delete(p.holders, addr)
		p.released[addr] = now
	}
}

// InUse counts the addresses handed out.
func (p *Pool) InUse() int { return len(p.holders) }
