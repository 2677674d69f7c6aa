package fence

import (
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestOverdue(t *testing.T) {
	const limit = 8 * time.Second
	stamp := func(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }
	type read struct {
		now   time.Duration
		text  string
		found bool
	}
	for name, c := range map[string]struct {
		reads []read
		now   time.Duration
		want  bool
	}{
		"no heartbeat ever": {now: time.Hour},
		"young":             {reads: []read{{100 * time.Second, stamp(100 * time.Second), true}}, now: 108*time.Second - 1},
		"old":               {reads: []read{{100 * time.Second, stamp(100 * time.Second), true}}, now: 108 * time.Second, want: true},
		"renewed meanwhile": {
			reads: []read{{100 * time.Second, stamp(100 * time.Second), true}, {109 * time.Second, stamp(109 * time.Second), true}},
			now:   110 * time.Second,
		},
		"the watchdog was restarted and counts from the renewal": {
			reads: []read{{107 * time.Second, stamp(100 * time.Second), true}}, now: 108 * time.Second, want: true,
		},
		"a renewal that was written late is as old as it is": {
			reads: []read{{100 * time.Second, stamp(100 * time.Second), true}, {115 * time.Second, stamp(101 * time.Second), true}},
			now:   115 * time.Second, want: true,
		},
		"armed and never renewed, soon after boot": {reads: []read{{time.Second, stamp(never), true}}, now: time.Second, want: true},
		"patience for a restart":                   {reads: []read{{time.Second, stamp(11 * time.Second), true}}, now: 19*time.Second - 1},
		"patience has run out":                     {reads: []read{{time.Second, stamp(11 * time.Second), true}}, now: 19 * time.Second, want: true},
		"patience has a limit":                     {reads: []read{{time.Second, stamp(time.Hour), true}}, now: 39 * time.Second, want: true},
		"nonsense counts as now":                   {reads: []read{{time.Second, "x", true}}, now: 8 * time.Second},
		"nonsense grows old":                       {reads: []read{{time.Second, "x", true}, {5 * time.Second, "x", true}}, now: 9 * time.Second, want: true},
		"the heartbeat was taken away":             {reads: []read{{time.Second, stamp(never), true}, {2 * time.Second, "", false}}, now: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var s sight
			for _, r := range c.reads {
				s = s.next(r.now, r.text, r.found)
			}
			if got := s.overdue(c.now, limit); got != c.want {
				t.Errorf("overdue %t, sight %+v", got, s)
			}
		})
	}
}

// However often it looks, also when it is restarted, the watchdog finds a
// silence overdue exactly from limit after the last renewal that it could see.
func TestOverdueExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 80
		var s sight
		var last time.Duration
		armed := false
		for now := time.Duration(1); now < 1000; now += time.Duration(rapid.IntRange(1, 50).Draw(t, "pause")) {
			if rapid.Bool().Draw(t, "renewed") {
				last, armed = now-time.Duration(rapid.IntRange(0, 5).Draw(t, "late")), true
			}
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				s = sight{}
			}
			s = s.next(now, strconv.FormatInt(int64(last), 10), armed)
			if got, want := s.overdue(now, limit), armed && now-last >= limit; got != want {
				t.Fatalf("at %d, last renewal %d: overdue %t", now, last, got)
			}
		}
	})
}
