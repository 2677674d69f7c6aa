package storage

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/watch"
)

// TestWatchesGoOverToTheJournalAndBack has a reader that rests for longer than its watch has room, again and again, beside one that never
// rests: both see every write once and in order, whoever delivers it.
func TestWatchesGoOverToTheJournalAndBack(t *testing.T) {
	t.Parallel()
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	from := listRevision(t, p)
	lazy, eager := watchAll(t, p, from), watchAll(t, p, from)
	var waiting []string
	for round := range 6 {
		count := resultBuffer / 2
		if round%2 == 1 {
			count = 3 * resultBuffer // more than a watch has room for
		}
		for i := range count {
			namespace, name := fmt.Sprint("ns-", i%3), fmt.Sprintf("p-%d-%d", round, i)
			p.create(t, namespace, name)
			waiting = append(waiting, namespace+"/"+name)
			if got := read(t, eager, 1)[0]; got.kind != watch.Added || got.name != waiting[len(waiting)-1] {
				t.Fatalf("round %d: the eager watch saw %s %s, want %s", round, got.kind, got.name, waiting[len(waiting)-1])
			}
		}
		for i, got := range read(t, lazy, len(waiting)) {
			if got.kind != watch.Added || got.name != waiting[i] {
				t.Fatalf("round %d: the lazy watch saw %s %s, want %s", round, got.kind, got.name, waiting[i])
			}
		}
		waiting = nil
	}
}
