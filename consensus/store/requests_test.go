package store

import (
	"crypto/rand"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestRequestsAgreeWithAMap adds requests whose IDs often share a place in the table, also beyond the 32 bits of its numbers.
func TestRequestsAgreeWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRequests(rapid.IntRange(1, 150).Draw(t, "limit"))
		r.gone = rapid.SampledFrom([]uint64{0, 1<<32 - 40, 1 << 40}).Draw(t, "gone")
		// Two halves that cancel each other out make all IDs one for the hash.
		alike := rapid.IntRange(1, 255).Draw(t, "alike")
		known := map[RequestID]Revision{}
		var order []RequestID
		draw := func() (id RequestID) {
			n := rapid.IntRange(1, 400).Draw(t, "id")
			id[0], id[1], id[8] = byte(n), byte(n>>8), byte(n)
			if n%256 > alike {
				id[15] = 1
			}
			return id
		}
		for i := range rapid.IntRange(1, 400).Draw(t, "steps") {
			id := draw()
			got, ok := r.find(id)
			if want, there := known[id]; ok != there || got.at != want {
				t.Fatalf("request %v: %v at %v, want %v at %v", id, ok, got.at, there, want)
			}
			if ok {
				continue
			}
			at := Revision(i + 1)
			r.add(id, Result{Revision: at})
			known[id], order = at, append(order, id)
			if len(order) > r.limit {
				if r.forgotten != known[order[0]] {
					t.Fatalf("forgotten is %v, the oldest was at %v", r.forgotten, known[order[0]])
				}
				delete(known, order[0])
				order = order[1:]
			}
		}
		for id, at := range known {
			if got, ok := r.find(id); !ok || got.at != at {
				t.Fatalf("request %v at %v is not found", id, at)
			}
		}
		if r.index.used != len(known) {
			t.Fatalf("the index counts %d, there are %d", r.index.used, len(known))
		}
	})
}

// BenchmarkRequests is what each write costs in a table that is full: one lookup in vain, one request more and one less. The shards are
// used in turn, so that they share the processor's caches as in a peer.
func BenchmarkRequests(b *testing.B) {
	for _, shards := range []int{1, 8} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			all := make([]requests, shards)
			ids := make([]RequestID, 1<<17)
			for i := range ids {
				rand.Read(ids[i][:]) //nolint:errcheck // never fails since Go 1.24
			}
			for i := range all {
				all[i] = newRequests(32_768)
				for n := range 40_000 {
					all[i].add(ids[n], Result{Revision: Revision(n)})
				}
			}
			for n := 40_000 * shards; b.Loop(); n++ {
				r, id := &all[n%shards], ids[n/shards%len(ids)]
				if _, ok := r.find(id); !ok {
					r.add(id, Result{Revision: Revision(n)})
				}
			}
		})
	}
}
