package vip

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// drawFront draws from a small space, so that fronts collide, change and come back.
func drawFront(t *rapid.T) Front {
	target := rapid.Custom(func(t *rapid.T) netip.AddrPort {
		addr := netip.AddrFrom4([4]byte{10, 32, 7, rapid.Byte().Draw(t, "pod") % 5})
		return netip.AddrPortFrom(addr, rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port"))
	})
	f := Front{
		Key: FrontKey{
			Addr:     netip.AddrFrom4([4]byte{10, 96, 0, rapid.Byte().Draw(t, "vip") % 4}),
			Protocol: rapid.SampledFrom([]Protocol{TCP, UDP, SCTP}).Draw(t, "protocol"),
			Port:     rapid.SampledFrom([]uint16{53, 80}).Draw(t, "front port"),
		},
		Targets:      sortTargets(rapid.SliceOfN(target, 0, 4).Draw(t, "targets")),
		LocalOutside: rapid.Bool().Draw(t, "local outside"),
		Affinity:     rapid.SampledFrom([]time.Duration{0, 0, 10 * time.Second, time.Hour}).Draw(t, "affinity"),
	}
	if f.LocalOutside {
		f.Local = sortTargets(rapid.SliceOfN(target, 0, 3).Draw(t, "local"))
	}
	if rapid.Bool().Draw(t, "guarded") {
		texts := rapid.SliceOfN(rapid.SampledFrom([]string{"192.0.2.0/24", "192.0.2.9/32", "10.0.0.0/8", "0.0.0.0/1", "fd00::/8"}), 1, 3)
		f.Sources = sourceRanges(&corev1.ServiceSpec{LoadBalancerSourceRanges: texts.Draw(t, "sources")})
	}
	f.DropInside = len(f.Targets) == 0 && rapid.Bool().Draw(t, "drop")
	return f
}

func drawState(t *rapid.T, label string) State {
	s := NewState()
	seen := map[FrontKey]bool{}
	for _, f := range rapid.SliceOfN(rapid.Custom(drawFront), 0, 12).Draw(t, label) {
		if !seen[f.Key] {
			seen[f.Key] = true
			s.add(&f)
		}
	}
	return s
}

func TestDiffTurnsOneStateIntoAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, next := drawState(t, "old"), drawState(t, "next")
		want := next.String()
		changes := Diff(old, next)
		if err := old.Apply(changes); err != nil {
			t.Fatal(err)
		}
		if got := old.String(); got != want {
			t.Fatalf("got\n%swant\n%s", got, want)
		}
		if !Diff(next, next).Empty() {
			t.Fatal("a state differs from itself")
		}
	})
}

// What a Table says has changed is exactly what has changed, whoever wins a contested front.
func TestTableTellsChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, kernel := NewTable(), NewState()
		owners := map[string][]Front{}
		for range rapid.IntRange(1, 8).Draw(t, "batches") {
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				owner := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "owner")
				fronts := rapid.SliceOfN(rapid.Custom(drawFront), 0, 4).Draw(t, "fronts")
				table.Set(owner, fronts)
				owners[owner] = fronts
			}
			if err := kernel.Apply(table.Flush()); err != nil {
				t.Fatal(err)
			}
			want := NewState()
			taken := map[FrontKey]bool{}
			for _, owner := range []string{"a", "b", "c"} {
				for _, f := range owners[owner] {
					if !taken[f.Key] {
						taken[f.Key] = true
						want.add(&f)
					}
				}
			}
			if got := kernel.String(); got != want.String() {
				t.Fatalf("got\n%swant\n%s", got, want)
			}
			if got := table.State().String(); got != want.String() {
				t.Fatalf("the table's own state\n%swant\n%s", got, want)
			}
			if !table.Flush().Empty() {
				t.Fatal("a second flush has changes")
			}
		}
	})
}

func TestGoneUDPTargetsAreTold(t *testing.T) {
	front := FrontKey{netip.MustParseAddr("10.96.0.10"), UDP, 53}
	a, b := netip.MustParseAddrPort("10.32.7.2:53"), netip.MustParseAddrPort("10.32.7.3:53")
	table := NewTable()
	table.Set("dns", []Front{{Key: front, Targets: []netip.AddrPort{a, b}}})
	if gone := table.Flush().Gone; len(gone) != 0 {
		t.Errorf("gone at first: %v", gone)
	}
	table.Set("dns", []Front{{Key: front, Targets: []netip.AddrPort{b}}})
	if gone := table.Flush().Gone; len(gone) != 1 || gone[0] != (StickyKey{front, a}) {
		t.Errorf("gone: %v; want only %s", gone, a)
	}
}

// fill makes a table of n Services with three endpoints each, as the figures in the README are measured.
func fill(n int) (*Table, func(i, generation int) []Front) {
	fronts := func(i, generation int) []Front {
		f := Front{Key: FrontKey{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), TCP, 80}}
		for e := range 3 {
			port := uint16(8080 + generation%2)
			f.Targets = append(f.Targets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(32 + e), byte(i >> 8), byte(i)}), port))
		}
		return []Front{f}
	}
	table := NewTable()
	for i := range n {
		table.Set(fmt.Sprint("service ", i), fronts(i, 0))
	}
	table.Flush()
	return table, fronts
}

func BenchmarkTableOneService(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, fronts := fill(n)
			b.ResetTimer()
			for i := range b.N {
				table.Set("service 7", fronts(7, i+1))
				if table.Flush().Empty() {
					b.Fatal("nothing changed")
				}
			}
		})
	}
}
