package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func mustPool(t interface{ Fatal(...any) }, prefix string) *Pool {
	p, err := NewPool(netip.MustParsePrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPoolStartsAtLowestAddress(t *testing.T) {
	p := mustPool(t, "10.32.7.0/24")
	if got := p.Gateway().String(); got != "10.32.7.1" {
		t.Errorf("gateway %s", got)
	}
	for _, want := range []string{"10.32.7.2", "10.32.7.3"} {
		got, err := p.Allocate("pod-"+want, time.Now())
		if err != nil || got.String() != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
}

func TestPoolRefusesRanges(t *testing.T) {
	for _, bad := range []string{"10.0.0.0/31", "10.0.0.0/7", "fd00::/64"} {
		if _, err := NewPool(netip.MustParsePrefix(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	if _, err := NewPool(netip.Prefix{}); err == nil {
		t.Error("the zero prefix was accepted")
	}
}

func TestPoolClaimRefusesForeignAddresses(t *testing.T) {
	p := mustPool(t, "10.32.7.0/24")
	for _, bad := range []string{"10.32.7.0", "10.32.7.1", "10.32.7.255", "10.32.8.5", "fd00::1"} {
		if err := p.Claim(netip.MustParseAddr(bad), "a"); err == nil {
			t.Errorf("%s was claimed", bad)
		}
	}
	if err := p.Claim(netip.MustParseAddr("10.32.7.9"), "a"); err != nil {
		t.Fatal(err)
	}
	if err := p.Claim(netip.MustParseAddr("10.32.7.9"), "b"); err == nil {
		t.Error("one address was claimed by two pods")
	}
}

// Whatever happens in whatever order: no address is held twice, none is reused before its time, and exhaustion is
// reported exactly when nothing is free.
func TestPoolProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(26, 30).Draw(t, "bits")
		p := mustPool(t, fmt.Sprintf("10.32.7.0/%d", bits))
		hosts := 1<<(32-bits) - 3
		now := time.Unix(0, 0)
		held := map[netip.Addr]string{}
		released := map[netip.Addr]time.Time{}
		free := func() int {
			n := hosts - len(held)
			for addr, at := range released {
				if _, again := held[addr]; !again && now.Sub(at) < ReuseDelay {
					n--
				}
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				want := free()
				holder := fmt.Sprint("pod", rapid.Int().Draw(t, "pod"))
				addr, err := p.Allocate(holder, now)
				if want == 0 {
					if !errors.Is(err, ErrExhausted) {
						t.Fatalf("nothing is free, got %s, %v", addr, err)
					}
					return
				}
				if err != nil {
					t.Fatalf("%d are free, got %v", want, err)
				}
				if other, twice := held[addr]; twice {
					t.Fatalf("%s belongs to %s", addr, other)
				}
				if at, was := released[addr]; was && now.Sub(at) < ReuseDelay {
					t.Fatalf("%s was released %s ago", addr, now.Sub(at))
				}
				if !p.Prefix().Contains(addr) || addr == p.Gateway() || addr == p.Prefix().Addr() || !p.Prefix().Contains(addr.Next()) {
					t.Fatalf("%s is no host address of %s", addr, p.Prefix())
				}
				held[addr] = holder
			},
			"release": func(t *rapid.T) {
				for addr := range held {
					p.Release(addr, now)
					delete(held, addr)
					released[addr] = now
					return
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			},
			"": func(t *rapid.T) {
				if p.InUse() != len(held) {
					t.Fatalf("%d in use, %d held", p.InUse(), len(held))
				}
			},
		})
	})
}
