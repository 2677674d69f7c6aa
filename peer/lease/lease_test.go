package lease

import (
	"fmt"
	"testing"
	"time"
)

// TestGossipIsBelievedWhenNobodyElseIsWaitedFor: a new meta leader takes gossip's word that a node has failed at once if it has heard of
// every other; while it waits for one, only when a node that lives would have been heard.
func TestGossipIsBelievedWhenNobodyElseIsWaitedFor(t *testing.T) {
	since := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for i, test := range []struct {
		after                         time.Duration
		heard, failed, patience, lost []string
	}{
		{after: 300 * time.Millisecond, heard: []string{"b", "c"}, failed: []string{"a"}, lost: []string{"a"}},
		{after: 300 * time.Millisecond, heard: []string{"b"}, patience: []string{"c"}, failed: []string{"a"}, lost: []string{"a"}},
		{after: 300 * time.Millisecond, heard: []string{"c"}, failed: []string{"a", "b"}, lost: []string{"a", "b"}},
		{after: 300 * time.Millisecond, heard: []string{"c"}, failed: []string{"a"}},
		{after: HeardWithin, heard: []string{"c"}, failed: []string{"a"}},
		{after: HeardWithin + 1, heard: []string{"c"}, failed: []string{"a"}, lost: []string{"a"}},
		{after: JudgeInterval, heard: []string{"b", "c"}, failed: []string{"a"}},
		{after: HeardWithin + 1, heard: []string{"b", "c"}, failed: []string{"a"}, patience: []string{"a"}},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			now := since.Add(test.after)
			times := map[string]time.Time{}
			for _, node := range test.heard {
				times[node] = now.Add(-time.Millisecond)
			}
			takeover := Takeover{Since: since, Patience: set(test.patience), Failed: set(test.failed), LeaseTimeout: 2 * time.Second}
			takeover.Complete(times, []string{"a", "b", "c"}, now)
			lost := set(test.lost)
			for _, node := range []string{"a", "b", "c"} {
				if is := now.Sub(times[node]) > takeover.LeaseTimeout; is != lost[node] {
					t.Errorf("%s: lost %v, want %v: heard %s ago", node, is, lost[node], now.Sub(times[node]))
				}
			}
		})
	}
}

// TestAZoneThatIsLostWithTheLeaderIsLostAtOnce: however gossip comes to know of the nodes that were lost together, all of them are lost
// before the shortest toleration after the first is over.
func TestAZoneThatIsLostWithTheLeaderIsLostAtOnce(t *testing.T) {
	const toleration = 5 * time.Second
	since := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	takeover := Takeover{Since: since, Failed: map[string]bool{}, LeaseTimeout: 2 * time.Second}
	first := map[string]time.Time{}
	for now := since; now.Before(since.Add(10 * time.Second)); now = now.Add(JudgeInterval) {
		takeover.Failed["a"] = true // of b and c gossip says nothing for long
		takeover.Failed["b"] = now.Sub(since) > 8*time.Second
		times := map[string]time.Time{"d": now}
		takeover.Complete(times, []string{"a", "b", "c", "d"}, now)
		for node, heard := range times {
			if _, known := first[node]; !known && now.Sub(heard) > takeover.LeaseTimeout {
				first[node] = now
			}
		}
	}
	for _, node := range []string{"b", "c"} {
		if after := first[node].Sub(first["a"]); first[node].IsZero() || after >= toleration {
			t.Errorf("%s is lost %s after the first (zero: %v), whose pods are evicted after %s", node, after, first[node].IsZero(), toleration)
		}
	}
	if _, lost := first["d"]; lost {
		t.Error("a node that renews is lost")
	}
}

func set(names []string) map[string]bool {
	all := map[string]bool{}
	for _, name := range names {
		all[name] = true
	}
	return all
}
