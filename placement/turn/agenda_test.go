package turn

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"shoal/placement"
)

// TestAgendaKeepsTheEarliestMoments compares an agenda with a map of moments.
func TestAgendaKeepsTheEarliestMoments(t *testing.T) {
	moments := rapid.Custom(func(t *rapid.T) time.Time {
		if seconds := rapid.Int64Range(-1, 10).Draw(t, "seconds"); seconds >= 0 {
			return time.Unix(seconds, 0)
		}
		return time.Time{} // now
	})
	refs := rapid.Custom(func(t *rapid.T) placement.Ref {
		return placement.Ref{
			Kind:           rapid.SampledFrom([]string{placement.KindJob, placement.KindNode}).Draw(t, "kind"),
			NamespacedName: types.NamespacedName{Name: rapid.StringMatching("[a-h]").Draw(t, "name")},
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, want := newAgenda(), map[placement.Ref]time.Time{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				var first time.Time
				for _, at := range want {
					if first.IsZero() || at.Before(first) {
						first = at
					}
					if at.IsZero() {
						first = at
						break
					}
				}
				if at, ok := a.first(); ok != (len(want) > 0) || !at.Equal(first) {
					t.Fatalf("first %s (%t), want %s of %v", at, ok, first, want)
				}
			},
			"add": func(t *rapid.T) {
				ref, at := refs.Draw(t, "ref"), moments.Draw(t, "at")
				a.add(ref, at)
				if have, ok := want[ref]; !ok || at.Before(have) {
					want[ref] = at
				}
			},
			"take": func(t *rapid.T) {
				now := moments.Draw(t, "now")
				var due []placement.Ref
				for ref, at := range want {
					if !at.After(now) {
						due = append(due, ref)
						delete(want, ref)
					}
				}
				slices.SortFunc(due, func(a, b placement.Ref) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
				if got := a.take(now); !slices.Equal(got, due) {
					t.Fatalf("at %s: took %v, want %v", now, got, due)
				}
			},
		})
	})
}

// BenchmarkAgendaAfterATakeover adds a question and takes it, where many wait for later and as many were due once: the time does not depend on
// how many.
func BenchmarkAgendaAfterATakeover(b *testing.B) {
	for name, count := range map[string]int{"1k": 1_000, "100k": 100_000} {
		b.Run(name, func(b *testing.B) {
			a, later := newAgenda(), time.Unix(1, 0)
			ref := func(i int) placement.Ref {
				return placement.Ref{Kind: placement.KindPod, NamespacedName: types.NamespacedName{Name: string(rune(i))}}
			}
			for i := range 2 * count {
				a.add(ref(i), time.Unix(int64(i%2), 0))
			}
			a.take(time.Unix(0, 0))
			for b.Loop() {
				a.add(placement.Ref{Kind: placement.KindNode}, time.Time{})
				if at, ok := a.first(); !ok || !at.Before(later) || len(a.take(time.Unix(0, 0))) != 1 {
					b.Fatal("what was added is not due")
				}
			}
		})
	}
}
