package lease

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMedianOfManyClocks: however seldom the median is found again, what Ahead says lies among the clocks about the middle one, also after
// the own clock has been set.
func TestMedianOfManyClocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table Table
		nodes := rapid.IntRange(1, 80).Draw(t, "nodes")
		now := Moment{Wall: time.Unix(1_800_000_000, 0), Up: time.Hour}
		aheadOf := map[string]time.Duration{} // of a clock that is right
		jumped := time.Duration(0)            // of the own clock
		for i := range rapid.IntRange(nodes, 4*nodes).Draw(t, "renewals") {
			step := time.Duration(rapid.IntRange(0, 20).Draw(t, "ms")) * time.Millisecond
			now.Wall, now.Up = now.Wall.Add(step), now.Up+step
			if rapid.IntRange(0, 20).Draw(t, "set") == 0 {
				by := time.Duration(rapid.IntRange(-60, 60).Draw(t, "by")) * time.Second
				now.Wall, jumped = now.Wall.Add(by), jumped+by
			}
			name := fmt.Sprint("n", i%nodes)
			if _, known := aheadOf[name]; !known {
				aheadOf[name] = time.Duration(rapid.IntRange(-500, 500).Draw(t, "ahead")) * time.Millisecond
			}
			table.Renew(name, now.Wall, aheadOf[name]-jumped, now)
			all := []time.Duration{}
			for _, ahead := range aheadOf {
				all = append(all, ahead)
			}
			if len(all) == 1 {
				all = append(all, jumped) // the own clock has a say as well
			}
			slices.Sort(all)
			middle, slack := (len(all)-1)/2, 0
			if len(all) >= 16 {
				slack = len(all)/8 + 1
			}
			least, most := all[max(middle-slack, 0)], all[min(middle+slack, len(all)-1)]
			if is := jumped - table.Ahead(now); is < least || is > most {
				t.Fatalf("the median of %d clocks is taken to be %s, it is between %s and %s", len(all), is, least, most)
			}
		}
	})
}

// TestTheFirstToRenewIsNotBelieved: a new table that has heard of one node only does not take that node's clock for right when it is ahead.
func TestTheFirstToRenewIsNotBelieved(t *testing.T) {
	var table Table
	now := Moment{Wall: time.Unix(1_800_000_000, 0), Up: time.Hour}
	for by, want := range map[time.Duration]time.Duration{21 * time.Second: 0, -21 * time.Second: 21 * time.Second} {
		table.Renew("n4", now.Wall, by, now)
		if got := table.Ahead(now); got != want {
			t.Errorf("a node is %s ahead of this peer, which takes itself to be %s ahead; want %s", by, got, want)
		}
	}
}
