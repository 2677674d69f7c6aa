package vip

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"shoal/mesh/podnet"
)

// pods makes the bridge, whose address the route to the services needs.
func pods(t testing.TB) {
	t.Helper()
	node := testNode()
	n, err := podnet.Open(t.Context(), podnet.Config{PodCIDR: node.PodCIDR, ClusterCIDR: node.ClusterCIDR})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Errorf("close pod network: %v", err)
		}
	})
}

// The kernel ends up with exactly what the table says, whatever the sequence of changes.
func TestKernelFollowsTable(t *testing.T) {
	pods(t)
	ruleset, err := hostRuleset()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ruleset.Remove(context.Background()); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		table := NewTable()
		if err := ruleset.Replace(t.Context(), testNode(), table.State()); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 5).Draw(rt, "batches") {
			for range rapid.IntRange(1, 3).Draw(rt, "changes") {
				owner := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "owner")
				table.Set(owner, rapid.SliceOfN(rapid.Custom(drawFront), 0, 4).Draw(rt, "fronts"))
			}
			if err := ruleset.Apply(t.Context(), table.Flush()); err != nil {
				rt.Fatal(err)
			}
			dump, err := ruleset.Dump(t.Context())
			if err != nil {
				rt.Fatal(err)
			}
			state, base, _ := strings.Cut(dump, "base ")
			if state != table.State().String() {
				rt.Fatalf("the kernel has\n%swant\n%s", state, table.State())
			}
			if !strings.Contains(base, "postrouting") {
				rt.Fatalf("the base chains are gone: %q", base)
			}
		}
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	pods(t)
	ruleset, err := hostRuleset()
	if err != nil {
		t.Fatal(err)
	}
	table, _ := fill(10)
	if err := ruleset.Replace(t.Context(), testNode(), table.State()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ruleset.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if dump, err := ruleset.Dump(t.Context()); err != nil || dump != "" {
		t.Errorf("left: %q, %v", dump, err)
	}
}

func BenchmarkKernelOneService(b *testing.B) {
	benchKernel(b, func(b *testing.B, ruleset Ruleset, n int) {
		table, fronts := fill(n)
		if err := ruleset.Replace(b.Context(), testNode(), table.State()); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for i := range b.N {
			table.Set("service 7", fronts(7, i+1))
			if err := ruleset.Apply(b.Context(), table.Flush()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkKernelReplace(b *testing.B) {
	benchKernel(b, func(b *testing.B, ruleset Ruleset, n int) {
		table, _ := fill(n)
		b.ResetTimer()
		for range b.N {
			if err := ruleset.Replace(b.Context(), testNode(), table.State()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchKernel measures with so many Services in the kernel.
func benchKernel(b *testing.B, measure func(b *testing.B, ruleset Ruleset, services int)) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			pods(b)
			ruleset, err := hostRuleset()
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := ruleset.Remove(context.Background()); err != nil {
					b.Error(err)
				}
			})
			measure(b, ruleset, n)
		})
	}
}
