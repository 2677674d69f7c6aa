package lease

import (
	"testing"
	"time"
)

// TestFewClocksDoNotOverturnWhatMoreHaveSaid feeds a peer, whose clock is right or is hours ahead, with what tables say of it.
func TestFewClocksDoNotOverturnWhatMoreHaveSaid(t *testing.T) {
	const hours = 3 * time.Hour
	of := func(clocks int, ahead time.Duration) Verdict { return Verdict{Ahead: ahead, Clocks: clocks, Nodes: 9} }
	for name, c := range map[string]struct {
		told []Verdict
		want time.Duration
	}{
		"the first word counts":                          {[]Verdict{of(2, hours)}, hours},
		"most nodes are believed":                        {[]Verdict{of(9, 0), of(5, hours)}, hours},
		"a wrong clock that hears itself first":          {[]Verdict{of(9, hours), of(1, 0)}, hours},
		"a wrong clock among few":                        {[]Verdict{of(9, hours), of(4, 0)}, hours},
		"few find a right clock wrong":                   {[]Verdict{of(9, 0), of(4, -hours)}, 0},
		"few that agree are more exact":                  {[]Verdict{of(9, 0), of(2, time.Second)}, time.Second},
		"few that agree do not make others of their ilk": {[]Verdict{of(9, 0), of(2, 0), of(4, hours)}, 0},
		"as many as before":                              {[]Verdict{of(2, hours), of(2, 0)}, 0},
		"before it is known how many there are":          {[]Verdict{of(9, hours), {Clocks: 3}}, hours},
		"the only node there is":                         {[]Verdict{{Clocks: 1, Nodes: 1}}, 0},
	} {
		var clock Clock
		at := Moment{Wall: time.Unix(1_800_000_000, 0), Up: time.Hour}
		for _, v := range c.told {
			clock.Note(v, at)
		}
		if got, known := clock.Ahead(at); !known || got != c.want {
			t.Errorf("%s: %s ahead (known: %t), want %s", name, got, known, c.want)
		}
	}
	var clock Clock
	at := Moment{Wall: time.Unix(1_800_000_000, 0), Up: time.Hour}
	if clock.Note(of(1, 0), at) {
		t.Error("a peer that has heard of nobody but itself takes its clock for right")
	}
	if _, known := clock.Ahead(at); known || !clock.Heard(at) {
		t.Error("hearing nobody but itself, a peer has been heard and knows nothing of its clock")
	}
}

// TestAClockThatIsSetRightAmongFew: whose clock was wrong, and is set, need not wait for the others.
func TestAClockThatIsSetRightAmongFew(t *testing.T) {
	var clock Clock
	at := Moment{Wall: time.Unix(1_800_000_000, 0), Up: time.Hour}
	clock.Note(Verdict{Ahead: 3 * time.Hour, Clocks: 9, Nodes: 9}, at)
	at.Wall = at.Wall.Add(-3 * time.Hour)
	if ahead, _ := clock.Ahead(at); ahead != 0 {
		t.Errorf("set right, the clock is %s ahead", ahead)
	}
	if !clock.Note(Verdict{Ahead: 10 * time.Millisecond, Clocks: 2, Nodes: 9}, at) {
		t.Error("two clocks that agree are not believed")
	}
}
