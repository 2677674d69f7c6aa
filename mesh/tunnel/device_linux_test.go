package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"shoal/mesh/nstest"
)

// Tunnels that carry packets are tested in the folder above, between nodes.

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nil)) }

func openTunnel(t testing.TB, name string) *Tunnel {
	t.Helper()
	loopback(t)
	tunnel, err := Open(t.Context(), Config{Interface: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tunnel.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return tunnel
}

// loopback gives the node the address that drawWant has as a source.
func loopback(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr("10.32.9.1/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrReplace(lo, address)); err != nil {
		t.Fatal(err)
	}
}

// The device reports back exactly what was wanted, after any sequence of changes.
func TestDeviceFollowsWant(t *testing.T) {
	tunnel := openTunnel(t, "wgtest0")
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 3).Draw(rt, "steps") {
			want, _ := drawWant(rt).Admit()
			want.PrivateKey[0] &= 248 // as the device stores it
			want.PrivateKey[31] = want.PrivateKey[31]&127 | 64
			if want, _ = want.Admit(); want.PrivateKey == (Key{}) {
				continue
			}
			if err := tunnel.Sync(t.Context(), want); err != nil {
				rt.Fatal(err)
			}
			have, err := tunnel.device.Have()
			if err != nil {
				rt.Fatal(err)
			}
			if rest := Diff(want, have); !rest.Empty() {
				rt.Fatalf("still to do: %+v\nhave: %+v", rest, have)
			}
		}
	})
}

func TestOpenSetsUpTheInterface(t *testing.T) {
	tunnel := openTunnel(t, "wgtest1")
	link, err := netlink.LinkByName("wgtest1")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().MTU != DefaultMTU || link.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("MTU %d, flags %s", link.Attrs().MTU, link.Attrs().Flags)
	}
	if _, err := Open(t.Context(), Config{Interface: "wgtest1"}); tunnel.device.Userspace() && err == nil {
		t.Error("two processes can have one interface")
	}
	if _, err := Open(t.Context(), Config{Interface: "a-name-too-long-for-linux"}); err == nil || !strings.Contains(err.Error(), "15") {
		t.Errorf("long name: %v", err)
	}
}

func TestCloseRemovesTheInterface(t *testing.T) {
	loopback(t)
	tunnel, err := Open(t.Context(), Config{Interface: "wgtest2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := tunnel.Close(); err != nil {
		t.Error(err)
	}
	nstest.Eventually(t, 5*time.Second, func() error {
		if _, err := netlink.LinkByName("wgtest2"); err == nil {
			return errors.New("still there")
		}
		return nil
	})
	again, err := Open(t.Context(), Config{Interface: "wgtest2"})
	if err != nil {
		t.Fatalf("open again: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestPortInUse(t *testing.T) {
	tunnel := openTunnel(t, "wgtest3")
	taken, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.LocalAddr().(*net.UDPAddr).Port
	private, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	err = tunnel.Sync(t.Context(), Want{PrivateKey: private, ListenPort: port})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("got %v", err)
	}
}

func TestSourceThatIsNotOurs(t *testing.T) {
	tunnel := openTunnel(t, "wgtest4")
	want := manyPeers(t, 1)
	want.Source = netip.MustParseAddr("10.32.77.1")
	if err := tunnel.Sync(t.Context(), want); err == nil || !strings.Contains(err.Error(), "10.32.77.1") {
		t.Errorf("got %v", err)
	}
	want.Source = netip.Addr{}
	if err := tunnel.Sync(t.Context(), want); err != nil {
		t.Errorf("then: %v", err)
	}
}

func manyPeers(t testing.TB, n int) Want {
	t.Helper()
	private, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	want := Want{PrivateKey: private}
	for i := range n {
		want.Peers = append(want.Peers, numberedPeer(i))
	}
	return want
}

func numberedPeer(i int) Peer {
	var key Key
	binary.BigEndian.PutUint32(key[:], uint32(i+1))
	return Peer{
		ID: fmt.Sprintf("peer-%05d", i), PublicKey: key,
		Endpoint:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 51820),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(40 + i>>8), byte(i), 0}), 24)},
	}
}

// BenchmarkAddPeer adds one more peer, and its route, to as many.
func BenchmarkAddPeer(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tunnel := openTunnel(b, "wgbench")
			want := manyPeers(b, n)
			if err := tunnel.Sync(b.Context(), want); err != nil {
				b.Fatal(err)
			}
			more := want
			more.Peers = append(want.Peers[:n:n], numberedPeer(n))
			b.ResetTimer()
			for range b.N {
				if err := tunnel.Sync(b.Context(), more); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := tunnel.Sync(b.Context(), want); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
