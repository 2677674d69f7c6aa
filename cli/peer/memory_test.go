package main

import "testing"

func TestLoadIsIdleOnlyAfterAWhile(t *testing.T) {
	var l load
	var allocated uint64
	second := func(grown uint64) bool {
		allocated += grown
		return l.next(allocated)
	}
	for n := range 20 {
		if second(busyRate+1) || l.idle {
			t.Fatalf("idle in busy second %d", n)
		}
	}
	for n := range quietFor - 1 {
		if second(busyRate/4) || l.idle {
			t.Fatalf("idle after %d quiet seconds", n+1)
		}
	}
	if !second(0) || !l.idle {
		t.Fatal("not idle after ten quiet seconds")
	}
	if second(busyRate) || !l.idle {
		t.Fatal("busy by a heartbeat")
	}
	if !second(2*busyRate) || l.idle {
		t.Fatal("not busy at once")
	}
}
