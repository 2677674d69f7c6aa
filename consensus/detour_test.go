package consensus

import (
	"testing"
	"time"
)

func TestADetourIsTriedNowAndThen(t *testing.T) {
	var d detour
	at := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	taken := func(seconds float64, term uint64, want bool) {
		t.Helper()
		if got := d.taken(at(seconds), term); got != want {
			t.Errorf("after %v s, led by term %d: taken %v", seconds, term, got)
		}
	}
	d.begin(at(1), detourAfter-1, 7)
	taken(1, 7, false) // an answer that failed quickly costs little
	d.begin(at(1), detourAfter, 7)
	taken(1.5, 7, true)
	taken(2.9, 0, true)
	taken(3, 7, false) // this one tries the replica
	taken(3, 7, true)  // the others do not wait for what it finds
	taken(4.9, 7, true)
	taken(5, 0, false)
	d.begin(at(6), detourAfter, 7)
	taken(7.9, 7, true)
	d.end()
	taken(7.9, 7, false)
	d.begin(at(10), detourAfter, 7)
	taken(10, 8, false) // there is another leader
	taken(10, 7, false)
	d.begin(at(10), detourAfter, 0)
	taken(10, 0, true)
	taken(10, 7, false)
}
