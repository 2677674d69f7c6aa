package logstore

import (
	"testing"

	"pgregory.net/rapid"
)

// place is where an entry stands: a run's segment and offset.
type place struct {
	seg *segment
	off int64
}

// TestRunsStandWhereTheyWereMoved moves runs, whole ones and parts, and compares every entry's place with a map's.
func TestRunsStandWhereTheyWereMoved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segments := []*segment{{number: 1}, {number: 2}, {number: 3}}
		g, want, off := newGroup(node{1, 1}), map[uint64]place{}, int64(0)
		put := func(r run, into func(run)) {
			off++
			r.seg, r.off, r.size = rapid.SampledFrom(segments).Draw(t, "segment"), off, r.count
			into(r)
			for i := max(r.first(), g.first); i <= min(r.last(), g.last); i++ {
				want[i] = place{r.seg, r.off}
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				// What follows a run is replaced by it.
				first := rapid.Uint64Range(g.first, g.last+1).Draw(t, "first")
				put(run{base: first, count: uint32(rapid.IntRange(1, 5).Draw(t, "count"))}, func(r run) {
					if err := g.append(r); err != nil {
						t.Fatal(err)
					}
				})
			case 2:
				if len(g.runs) > 0 && rapid.Bool().Draw(t, "several") {
					again := append([]run(nil), g.runs[rapid.IntRange(0, len(g.runs)-1).Draw(t, "from"):]...)
					for _, r := range again {
						part := r.from(r.first() + uint64(rapid.IntRange(0, int(r.count)-1).Draw(t, "without")))
						put(part, func(r run) { g.moved = append(g.moved, r) })
					}
					g.put()
				} else if len(g.runs) > 0 {
					put(rapid.SampledFrom(g.runs).Draw(t, "run"), g.overlay)
				}
			case 3:
				if g.last >= g.first {
					first := rapid.Uint64Range(g.first, g.last).Draw(t, "first")
					put(run{base: first, count: uint32(rapid.IntRange(1, 5).Draw(t, "count"))}, g.overlay)
				}
			case 4:
				upTo := rapid.Uint64Range(g.snapshot.Index, g.last).Draw(t, "compacted")
				g.snapshot.Index = upTo
				g.compact(upTo)
			}
			checkPlaces(t, g, want, segments)
		}
	})
}

// TestMovedRunsFillTheirGaps starts with some runs missing, whose file was given back after they had been moved, and reads where they were
// moved to, between others that stand.
func TestMovedRunsFillTheirGaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segments := []*segment{{number: 1}, {number: 2}}
		g, want, off := newGroup(node{1, 1}), map[uint64]place{}, int64(0)
		g.first = rapid.Uint64Range(1, 5).Draw(t, "first")
		g.last = g.first - 1
		g.snapshot.Index = g.last
		var moved []run
		for range rapid.IntRange(1, 30).Draw(t, "runs") {
			off++
			r := run{base: g.last + 1, count: uint32(rapid.IntRange(1, 4).Draw(t, "count")), off: off}
			r.size = r.count
			if rapid.Bool().Draw(t, "moved") {
				r.seg = segments[1]
				moved = append(moved, r)
				g.last = r.last()
			} else {
				r.seg = segments[0]
				g.push(r)
			}
			for i := r.first(); i <= r.last(); i++ {
				want[i] = place{r.seg, r.off}
			}
		}
		if rapid.Bool().Draw(t, "one by one") {
			for _, r := range rapid.Permutation(moved).Draw(t, "order") {
				g.overlay(r)
			}
		} else {
			g.moved = moved
			g.put()
		}
		checkPlaces(t, g, want, segments)
	})
}

func checkPlaces(t *rapid.T, g *group, want map[uint64]place, segments []*segment) {
	t.Helper()
	if err := g.check(); err != nil {
		t.Fatal(err)
	}
	live := map[*segment]int64{}
	for _, r := range g.runs {
		live[r.seg] += int64(r.size)
	}
	for _, s := range segments {
		if s.live != live[s] {
			t.Fatalf("segment %d counts %d living bytes, %d live in it", s.number, s.live, live[s])
		}
	}
	for i := g.first; i <= g.last; i++ {
		if r := g.runs[g.find(i)]; (place{r.seg, r.off}) != want[i] {
			t.Fatalf("entry %d is at %d of segment %d, it was put at %d of segment %d", i, r.off, r.seg.number, want[i].off, want[i].seg.number)
		}
	}
}

// BenchmarkMovingRuns moves a replica's runs one after the other, as giving its oldest file back does. The time for one does not depend on
// how many there are.
func BenchmarkMovingRuns(b *testing.B) {
	for name, count := range map[string]int{"1k": 1_000, "20k": 20_000} {
		b.Run(name, func(b *testing.B) {
			from, to := &segment{number: 1}, &segment{number: 2}
			g := newGroup(node{1, 1})
			for i := range count {
				g.push(run{base: uint64(i + 1), count: 1, seg: from, off: int64(i), size: 1})
			}
			for n := 0; b.Loop(); n++ {
				r := g.runs[n%count]
				r.seg = to
				g.overlay(r)
			}
		})
	}
}

// BenchmarkMovedRunsAtAStart reads where the first half of a replica's runs was moved to: the time for one does not depend on how many there
// are.
func BenchmarkMovedRunsAtAStart(b *testing.B) {
	for name, count := range map[string]int{"1k": 1_000, "20k": 20_000} {
		b.Run(name, func(b *testing.B) {
			seg := &segment{number: 1}
			for b.Loop() {
				g := newGroup(node{1, 1})
				g.last = uint64(count)
				for i := range count {
					g.push(run{base: uint64(count + i + 1), count: 1, seg: seg, size: 1})
				}
				for i := range count {
					g.moved = append(g.moved, run{base: uint64(i + 1), count: 1, seg: seg, size: 1})
				}
				g.put()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/run")
		})
	}
}
