package peer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"shoal/peer/lease"
)

func TestJumpsOfTheClockCountAtOnce(t *testing.T) {
	begin := wall(nil).moment()
	later := func(wall, up time.Duration) lease.Moment {
		return lease.Moment{Wall: begin.Wall.Add(wall), Up: begin.Up + up}
	}
	c := newClock(nil)
	if _, known := c.aheadAt(begin); known {
		t.Error("nothing was noted, yet the offset is known")
	}
	c.note(lease.Verdict{Ahead: 100 * time.Millisecond, Clocks: 3, Nodes: 3}, begin)
	for name, check := range map[string]struct {
		now  lease.Moment
		want time.Duration
	}{
		"nothing happens":    {later(time.Second, time.Second), 100 * time.Millisecond},
		"hours forward":      {later(5*time.Hour+time.Second, time.Second), 5*time.Hour + 100*time.Millisecond},
		"hours back":         {later(-5*time.Hour+time.Second, time.Second), -5*time.Hour + 100*time.Millisecond},
		"a day went by well": {later(24*time.Hour, 24*time.Hour), 100 * time.Millisecond},
	} {
		if got, known := c.aheadAt(check.now); !known || got != check.want {
			t.Errorf("%s: %v, want %v", name, got, check.want)
		}
	}
}

func TestTheTableFollowsItsOwnClocksJumps(t *testing.T) {
	table := &renewals{}
	now := time.Now()
	for _, node := range []string{"self", "b", "c"} {
		table.renew(node, now, 0, nil)
	}
	at := wall(nil).moment()
	jumped := lease.Moment{Wall: at.Wall.Add(3 * time.Hour), Up: at.Up}
	if got := table.verdict(jumped).Ahead.Round(time.Second); got != 3*time.Hour {
		t.Errorf("after a jump of three hours this peer is %v ahead", got)
	}
	if got := table.verdict(lease.Moment{Wall: at.Wall.Add(time.Hour), Up: at.Up + time.Hour}).Ahead; got != 0 {
		t.Errorf("clocks that were heard of an hour ago count: %v", got)
	}
}

func TestTheTableSaysWhoseClockIsOff(t *testing.T) {
	table := &renewals{}
	now := time.Now()
	for node, ahead := range map[string]time.Duration{
		"self": 0, "b": time.Second, "fast": 3 * time.Hour, "slow": -3 * time.Hour, "c": -time.Second,
	} {
		table.renew(node, now, ahead, nil)
	}
	at := wall(nil).moment()
	if off := table.off(at); len(off) != 2 || !strings.Contains(fmt.Sprint(off["fast"]), "3h0m0s ahead") || !strings.Contains(fmt.Sprint(off["slow"]), "3h0m0s behind") {
		t.Errorf("off are %v", off)
	}
	at.Wall = at.Wall.Add(time.Hour) // whose own clock jumps sees the others where they were
	if off := table.off(at); off["b"] != nil || !strings.Contains(fmt.Sprint(off["fast"]), "3h0m0s ahead") {
		t.Errorf("after a jump off are %v", off)
	}
}

func TestTwoClocksThatDisagree(t *testing.T) {
	table := &renewals{}
	now := time.Now()
	table.renew("self", now, 0, nil)
	table.renew("b", now, 2*time.Hour, nil)
	if got := table.verdict(table.wall.moment()).Ahead.Round(time.Second); got != 0 {
		t.Errorf("the earlier clock of two is %v ahead", got)
	}
}

func TestAWrongClockIsToldInOneSentence(t *testing.T) {
	c := newClock(nil)
	for by, want := range map[time.Duration]string{
		0: "", time.Second: "", 3 * time.Hour: "3h0m0s ahead", -3 * time.Hour: "3h0m0s behind", -time.Second: "",
	} {
		c.note(lease.Verdict{Ahead: by, Clocks: 3, Nodes: 3}, wall(nil).moment())
		if got := c.problem(); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", by, got, want)
		}
	}
}
