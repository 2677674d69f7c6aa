package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func key(b byte) Key { return Key{b, 1} }

// drawWant draws from a small space, so that peers collide, change and come back.
func drawWant(t *rapid.T) Want {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		addr := netip.AddrFrom4([4]byte{10, 32, rapid.Byte().Draw(t, "node") % 6, rapid.Byte().Draw(t, "host")})
		return netip.PrefixFrom(addr, rapid.SampledFrom([]int{24, 24, 23, 32}).Draw(t, "bits"))
	})
	peer := rapid.Custom(func(t *rapid.T) Peer {
		n := rapid.Byte().Draw(t, "peer") % 6
		p := Peer{ID: fmt.Sprint("peer-", n), PublicKey: key(n), AllowedIPs: rapid.SliceOfN(prefix, 0, 2).Draw(t, "ranges")}
		if rapid.Bool().Draw(t, "has endpoint") {
			addr := netip.AddrFrom4([4]byte{192, 0, 2, rapid.Byte().Draw(t, "endpoint") % 4})
			p.Endpoint = netip.AddrPortFrom(addr, 51820)
		}
		return p
	})
	w := Want{
		PrivateKey: key(rapid.Byte().Draw(t, "private") % 2), ListenPort: rapid.IntRange(51820, 51821).Draw(t, "port"),
		Peers: rapid.SliceOfN(peer, 0, 6).Draw(t, "peers"),
	}
	if rapid.Bool().Draw(t, "has source") {
		w.Source = netip.MustParseAddr("10.32.9.1")
	}
	return w
}

// What Admit lets through is consistent, and only what is inconsistent is left out.
func TestAdmitProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawWant(t)
		admitted, err := want.Admit()
		keys := map[Key]bool{}
		for i, p := range admitted.Peers {
			if keys[p.PublicKey] {
				t.Fatalf("key of %s twice", p.ID)
			}
			keys[p.PublicKey] = true
			for _, r := range p.AllowedIPs {
				for _, q := range admitted.Peers[i+1:] {
					if slices.ContainsFunc(q.AllowedIPs, r.Overlaps) {
						t.Fatalf("%s and %s overlap in %s", p.ID, q.ID, r)
					}
				}
			}
		}
		if left := len(want.Peers) - len(admitted.Peers); left != strings.Count(fmt.Sprint(err), ErrConflict.Error()) {
			t.Fatalf("%d left out, but: %v", left, err)
		}
		if again, err := admitted.Admit(); err != nil || !reflect.DeepEqual(again, admitted) {
			t.Fatalf("admitted is not admissible: %v", err)
		}
	})
}

func TestRangeThatHoldsAnEndpoint(t *testing.T) {
	want := Want{PrivateKey: key(9), Peers: []Peer{
		{ID: "a", PublicKey: key(1), Endpoint: netip.MustParseAddrPort("10.40.0.7:1")},
		{ID: "b", PublicKey: key(2), Endpoint: netip.MustParseAddrPort("10.50.0.7:1"),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/16")}},
	}}
	admitted, err := want.Admit()
	if len(admitted.Peers) != 1 || admitted.Peers[0].ID != "a" || !errors.Is(err, ErrConflict) {
		t.Errorf("admitted %v, %v", admitted.Peers, err)
	}
}

func TestDiffTurnsHaveIntoWant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, _ := drawWant(t).Admit()
		want, _ := drawWant(t).Admit()
		have := Have{}.Apply(Diff(old, Have{}))
		after := have.Apply(Diff(want, have))
		if rest := Diff(want, after); !rest.Empty() {
			t.Fatalf("still to do: %+v", rest)
		}
		if len(after.Peers) != len(want.Peers) || len(after.Routes) != len(want.routes()) {
			t.Fatalf("%d peers and %d routes, want %d and %d",
				len(after.Peers), len(after.Routes), len(want.Peers), len(want.routes()))
		}
	})
}

func TestLearnedEndpointIsKept(t *testing.T) {
	learned := netip.MustParseAddrPort("198.51.100.9:4242")
	p := Peer{ID: "a", PublicKey: key(1), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.32.1.0/24")}}
	have := Have{Peers: []Peer{{PublicKey: key(1), Endpoint: learned, AllowedIPs: p.AllowedIPs}}}
	have.Routes = Want{Peers: []Peer{p}}.routes()
	if plan := Diff(Want{Peers: []Peer{p}}, have); !plan.Empty() {
		t.Errorf("plan %+v", plan)
	}
}

// recorder counts how often the device is read, and fails when told to.
type recorder struct {
	Memory
	reads int
	fail  error
}

func (r *recorder) Have() (Have, error) {
	r.reads++
	return r.Memory.Have()
}

func (r *recorder) Configure(plan Plan) error {
	if r.fail != nil {
		return r.fail
	}
	return r.Memory.Configure(plan)
}

func TestSyncReadsTheDeviceOnlyWhenUnsure(t *testing.T) {
	device := &recorder{}
	tunnel := New(device, nil)
	want := Want{PrivateKey: key(9), Peers: []Peer{
		{ID: "a", PublicKey: key(1), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.32.1.0/24")}},
		{ID: "b", PublicKey: key(2), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.32.1.128/25")}},
	}}
	if err := tunnel.Sync(t.Context(), want); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "b claims 10.32.1.128/25") {
		t.Errorf("conflict: %v", err)
	}
	if len(device.have.Peers) != 1 || device.have.Peers[0].PublicKey != key(1) {
		t.Errorf("have %+v", device.have)
	}
	want.Peers = want.Peers[:1]
	if err := tunnel.Sync(t.Context(), want); err != nil || device.reads != 1 {
		t.Errorf("%v, %d reads", err, device.reads)
	}
	device.fail = errors.New("no buffer space")
	want.ListenPort = 1
	if err := tunnel.Sync(t.Context(), want); !errors.Is(err, device.fail) {
		t.Errorf("got %v", err)
	}
	device.fail = nil
	if err := tunnel.Sync(t.Context(), want); err != nil || device.reads != 2 || device.have.ListenPort != 1 {
		t.Errorf("%v, %d reads, %+v", err, device.reads, device.have)
	}
}

func TestKeys(t *testing.T) {
	private, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseKey(private.String())
	if err != nil || parsed != private {
		t.Errorf("%v, %v", parsed, err)
	}
	// RFC 7748 section 6.1, Alice's keys.
	alice := Key{0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
		0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a}
	if got := fmt.Sprintf("%x", first4(alice.Public())); got != "8520f009" {
		t.Errorf("public key begins with %s", got)
	}
	for _, bad := range []string{"", "AAAA", "!", private.String() + "AAAA"} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func first4(k Key) []byte { return k[:4] }
