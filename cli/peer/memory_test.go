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

func TestLargeHeapsKeepLittleGarbage(t *testing.T) {
	for _, c := range []struct {
		idle  bool
		alive uint64
		want  int
	}{
		{false, 0, 100}, {false, 50 << 20, 100}, {false, 192 << 20, 50}, {false, 1 << 30, 25}, {true, 50 << 20, 25}, {true, 1 << 30, 25},
	} {
		if got := percent(c.idle, c.alive); got != c.want {
			t.Errorf("idle %v with %d MiB alive: %d, want %d", c.idle, c.alive>>20, got, c.want)
		}
	}
}
