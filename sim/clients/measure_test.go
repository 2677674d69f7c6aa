package clients

import (
	"testing"
	"time"

	"shoal/sim/history"
)

// TestInvalidRuns: a run in which clients did too little is not valid, whatever the checkers say.
func TestInvalidRuns(t *testing.T) {
	run := func(operations int, answered int, minority bool) *history.History {
		h := &history.History{Faults: []history.Fault{{Begin: 0, End: time.Hour, Minority: minority}}}
		for i := range operations {
			op := history.Operation{Kind: history.Get, Invoke: time.Duration(i) * 10 * time.Second / time.Duration(operations), Outcome: history.Unknown}
			if i < answered {
				op.Outcome = history.OK
			}
			op.Return = op.Invoke + time.Millisecond
			h.Operations = append(h.Operations, op)
		}
		return h
	}
	for _, test := range []struct {
		name    string
		history *history.History
		valid   bool
	}{
		{"enough", run(200, 150, true), true},
		{"too few", run(50, 50, true), false},
		{"too few answers while a minority is hurt", run(200, 50, true), false},
		{"few answers while a majority is hurt", run(200, 50, false), true},
	} {
		if err := Measure(test.history).Invalid(10, 0.5); (err == nil) != test.valid {
			t.Errorf("%s: %v (%s)", test.name, err, Measure(test.history))
		}
	}
}
