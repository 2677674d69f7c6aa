package cputime

import (
	"testing"
	"time"
)

func TestUsedCountsWork(t *testing.T) {
	begun, before := time.Now(), Used()
	for Used()-before < 10*time.Millisecond {
		if time.Since(begun) > time.Minute {
			t.Fatalf("a loop that works has used %s in %s", Used()-before, time.Since(begun))
		}
	}
}
