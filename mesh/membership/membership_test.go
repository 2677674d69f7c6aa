package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/serf/serf"

	"shoal/internal/polling"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, keyBytes) }

// bubble runs f in virtual time. What memberlist has begun (probes, timers) ends by itself soon after the shutdown.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) })
		f(t)
	})
}

// virtual opens peer number i on a network in memory.
func virtual(t *testing.T, n *network, i int, change func(*Config)) *Membership {
	t.Helper()
	h := n.host(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7443))
	return open(t, h, h, h.addr, h.dial, i, change)
}

// real opens peer number i on sockets of the loopback interface.
func real(t *testing.T, i int, change func(*Config)) *Membership {
	t.Helper()
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := packets.LocalAddr().(*net.UDPAddr).AddrPort()
	streams, err := net.Listen("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp4", to.String())
	}
	return open(t, packets, streams, addr, dial, i, change)
}

func open(
	t *testing.T, packets net.PacketConn, streams net.Listener, addr netip.AddrPort,
	dial func(context.Context, netip.AddrPort) (net.Conn, error), i int, change func(*Config),
) *Membership {
	t.Helper()
	c := Config{
		PeerID: fmt.Sprintf("%016x", i), Name: fmt.Sprint("node-", i), Advertise: addr,
		Packets: packets, Streams: streams, DialStream: dial, Key: testKey(1), Logger: quiet(),
		Tags: Tags{Zone: "east", Version: "v1", WireGuardPort: 51820, WireGuardKey: strings.Repeat("k", 43) + "="},
	}
	if change != nil {
		change(&c)
	}
	m, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Shutdown(); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return m
}

// within waits until ok, polling.
func within(t *testing.T, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	started := time.Now()
	polling.Until(t, 5*time.Millisecond, d, what, func(context.Context) error {
		if !ok() {
			return errors.New("it is not so")
		}
		return nil
	})
	return time.Since(started)
}

func ids(numbers ...int) []string {
	var out []string
	for _, i := range numbers {
		out = append(out, fmt.Sprintf("%016x", i))
	}
	return out
}

func join(t *testing.T, m *Membership, others ...*Membership) {
	t.Helper()
	var addrs []netip.AddrPort
	for _, o := range others {
		addrs = append(addrs, o.advertise)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.Join(ctx, addrs); err != nil {
		t.Fatal(err)
	}
}

func sees(m *Membership, want []string) func() bool {
	return func() bool { return slices.Equal(m.Alive(), want) }
}

func TestKilledPeerIsNoticed(t *testing.T) {
	a, b, c := real(t, 1, nil), real(t, 2, nil), real(t, 3, nil)
	join(t, b, a)
	join(t, c, a)
	for _, m := range []*Membership{a, b, c} {
		within(t, 3*time.Second, "everybody sees everybody", sees(m, ids(1, 2, 3)))
	}
	if got := a.Members()[2]; got.Name != "node-3" || got.Tags.Zone != "east" || got.Tags.WireGuardPort != 51820 || got.Address != c.advertise {
		t.Errorf("member: %+v", got)
	}
	events := a.Subscribe(t.Context())
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	took := within(t, 3*time.Second, "the dead is noticed", sees(a, ids(1, 2)))
	within(t, time.Second, "everybody notices", sees(b, ids(1, 2)))
	t.Logf("noticed after %s", took)
	if addr, ok := a.Address(ids(3)[0]); !ok || addr != c.advertise {
		t.Errorf("last known address: %s, %v", addr, ok)
	}
	var kinds []string
	for len(kinds) < 4 {
		select {
		case e := <-events:
			kinds = append(kinds, e.Kind.String()+" "+e.Member.Name)
		case <-time.After(time.Second):
			t.Fatalf("events: %v", kinds)
		}
	}
	slices.Sort(kinds[:3])
	if want := []string{"joined node-1", "joined node-2", "joined node-3", "failed node-3"}; !slices.Equal(kinds, want) {
		t.Errorf("events %v, want %v", kinds, want)
	}
}

func TestLeaveIsNotAFailure(t *testing.T) {
	a, b := real(t, 1, nil), real(t, 2, nil)
	join(t, b, a)
	within(t, 3*time.Second, "both there", sees(a, ids(1, 2)))
	if err := b.Leave(t.Context()); err != nil {
		t.Error(err)
	}
	within(t, 3*time.Second, "b has left", func() bool {
		members := a.Members()
		return len(members) == 2 && members[1].Status == Left
	})
	if len(a.Addresses()) != 0 {
		t.Errorf("addresses to come back to: %v", a.Addresses())
	}
	select {
	case <-b.Done():
	default:
		t.Error("b is not done")
	}
}

func TestJoinRetriesUntilSomebodyIsThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(1, 0, time.Millisecond)
		a := virtual(t, n, 1, nil)
		late := netip.MustParseAddrPort("10.0.0.2:7443")
		time.AfterFunc(20*time.Second, func() { virtual(t, n, 2, nil) })
		if err := a.Join(t.Context(), []netip.AddrPort{late}); err != nil {
			t.Fatal(err)
		}
		within(t, time.Second, "both there", sees(a, ids(1, 2)))

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := a.Join(ctx, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:7443")})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "10.0.0.9:7443") {
			t.Errorf("nobody there: %v", err)
		}
	})
}

func TestNameTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(1, 0, time.Millisecond)
		a, b := virtual(t, n, 1, nil), virtual(t, n, 2, nil)
		join(t, b, a)
		within(t, time.Second, "a knows b", sees(a, ids(1, 2)))
		impostor := virtual(t, n, 3, func(c *Config) { c.Name = "node-2" })
		err := impostor.Join(t.Context(), []netip.AddrPort{a.advertise})
		if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), ids(2)[0]) {
			t.Errorf("got %v", err)
		}
		// A machine that was wiped comes back under its old name while gossip still believes in its former self.
		if err := errors.Join(impostor.Shutdown(), b.Shutdown()); err != nil {
			t.Fatal(err)
		}
		anew := virtual(t, n, 4, func(c *Config) { c.Name = "node-2" })
		if err := anew.Join(t.Context(), []netip.AddrPort{a.advertise}); err != nil {
			t.Errorf("the name's owner is dead: %v", err)
		}
	})
}

func TestRestartWithSavedAddresses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(1, 0, time.Millisecond)
		var all []*Membership
		for i := 1; i <= 4; i++ {
			all = append(all, virtual(t, n, i, nil))
			join(t, all[i-1], all[0])
		}
		for _, m := range all {
			within(t, 5*time.Second, "all there", sees(m, ids(1, 2, 3, 4)))
		}
		saved := make([][]netip.AddrPort, 4)
		for i, m := range all {
			saved[i] = m.Addresses()
			if len(saved[i]) != 3 {
				t.Fatalf("saved %v", saved[i])
			}
		}
		for _, m := range all { // the whole cluster loses power
			if err := m.Shutdown(); err != nil {
				t.Fatal(err)
			}
		}
		for i := range all {
			all[i] = virtual(t, n, i+1, nil)
		}
		for i, m := range all {
			if err := m.Join(t.Context(), saved[i]); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range all {
			within(t, 30*time.Second, "all there again", sees(m, ids(1, 2, 3, 4)))
		}
	})
}

func TestKeyRotation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(1, 0, time.Millisecond)
		a, b := virtual(t, n, 1, nil), virtual(t, n, 2, nil)
		join(t, b, a)
		within(t, time.Second, "a knows b", sees(a, ids(1, 2)))
		for _, step := range []func([]byte) error{a.InstallKey, a.UseKey} {
			if err := step(testKey(2)); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.RemoveKey(testKey(1)); err != nil {
			t.Fatal(err)
		}
		if err := a.InstallKey([]byte("short")); err == nil {
			t.Error("a short key was accepted")
		}
		late := virtual(t, n, 3, func(c *Config) { c.Key = testKey(2) })
		join(t, late, b)
		within(t, 5*time.Second, "the new key's holder is in", sees(a, ids(1, 2, 3)))
		old := virtual(t, n, 4, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := old.Join(ctx, []netip.AddrPort{a.advertise}); err == nil {
			t.Error("the old key still opens")
		}
	})
}

// Whoever has no key is not heard, whatever he sends, and disturbs nobody.
func TestGarbageAndForeignKeysAreDropped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(1, 0, time.Millisecond)
		a, b := virtual(t, n, 1, nil), virtual(t, n, 2, nil)
		join(t, b, a)
		foreign := virtual(t, n, 3, func(c *Config) { c.Key = testKey(9) })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := foreign.Join(ctx, []netip.AddrPort{a.advertise}); err == nil {
			t.Error("joined with a foreign key")
		}
		stranger := n.host(netip.MustParseAddrPort("10.9.9.9:1"))
		defer stranger.Close()
		chance := rand.New(rand.NewPCG(1, 1))
		for range 2000 {
			garbage := make([]byte, chance.IntN(1500))
			for i := range garbage {
				garbage[i] = byte(chance.Uint32())
			}
			if len(garbage) > 0 && chance.IntN(2) == 0 {
				garbage[0] = byte(chance.IntN(16)) // memberlist's own message types
			}
			if _, err := stranger.WriteTo(garbage, net.UDPAddrFromAddrPort(a.advertise)); err != nil {
				t.Fatal(err)
			}
			if chance.IntN(100) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for range 20 {
			conn, err := stranger.dial(ctx, a.advertise)
			if err != nil {
				break
			}
			go func() {
				_, _ = conn.Write([]byte{10, 255, 255, 255, 255, 1, 2, 3}) // refused half-way, by design
				conn.Close()
			}()
		}
		time.Sleep(10 * time.Second)
		if !slices.Equal(a.Alive(), ids(1, 2)) || !slices.Equal(b.Alive(), ids(1, 2)) {
			t.Errorf("alive: %v and %v", a.Alive(), b.Alive())
		}
	})
}

// With one packet in twenty lost, nobody is declared dead who is not, and the dead are found.
func TestLossyNetwork(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const peers = 10
		n := newNetwork(7, 0.05, 2*time.Millisecond)
		var all []*Membership
		var everybody []int
		for i := 1; i <= peers; i++ {
			all = append(all, virtual(t, n, i, nil))
			everybody = append(everybody, i)
			join(t, all[i-1], all[0])
		}
		for _, m := range all {
			within(t, 4*pushPullInterval, "all there", sees(m, ids(everybody...)))
		}
		events := all[0].Subscribe(t.Context())
		time.Sleep(time.Minute)
		for range peers {
			<-events
		}
		select {
		case e := <-events:
			t.Errorf("while nobody died: %s %s", e.Kind, e.Member.Name)
		default:
		}
		if err := all[peers-1].Shutdown(); err != nil {
			t.Fatal(err)
		}
		took := within(t, 5*time.Second, "the dead is noticed", sees(all[0], ids(everybody[:peers-1]...)))
		t.Logf("noticed after %s", took)
	})
}

func TestConfigIsChecked(t *testing.T) {
	for what, c := range map[string]Config{
		"ID":      {},
		"address": {PeerID: "a", Name: "a", Advertise: netip.MustParseAddrPort("0.0.0.0:7443")},
		"key":     {PeerID: "a", Name: "a", Advertise: netip.MustParseAddrPort("10.0.0.1:7443"), Key: []byte("short")},
		"stream":  {PeerID: "a", Name: "a", Advertise: netip.MustParseAddrPort("10.0.0.1:7443"), Key: testKey(1)},
	} {
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTagsFit(t *testing.T) {
	tags := Tags{Zone: strings.Repeat("z", 63), Version: strings.Repeat("v", 32), WireGuardPort: 65535, WireGuardKey: strings.Repeat("k", 44)}
	size := 0
	for key, value := range tags.encode(strings.Repeat("n", 253)) {
		size += len(key) + len(value) + 4
	}
	if size > 512 {
		t.Errorf("the largest tags have %d bytes", size)
	}
	if got := decodeTags(tags.encode("n")); got != tags {
		t.Errorf("got %+v, want %+v", got, tags)
	}
}

// FuzzTags decodes what another peer says about itself.
func FuzzTags(f *testing.F) {
	f.Add("peer-1", "x", "v1", "51820", "key", []byte{192, 0, 2, 1})
	f.Add("", "", "", "-1", "", []byte{})
	f.Add("\x00", "zone\n", "\xff", "99999999999999999999", "=", []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, name, zone, version, port, key string, address []byte) {
		m := decodeMember(serf.Member{Name: name, Addr: address, Tags: map[string]string{
			tagName: name, tagZone: zone, tagVersion: version, tagWireGuardPort: port, tagWireGuardKey: key,
		}})
		if m.Address.IsValid() && len(address) != 4 && len(address) != 16 {
			t.Errorf("%x is the address %v", address, m.Address)
		}
		if again := decodeTags(m.Tags.encode(m.Name)); again != m.Tags {
			t.Errorf("%+v became %+v", m.Tags, again)
		}
	})
}
