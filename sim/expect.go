package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/sim/model"
)

const formExpect = "expect ready within DURATION, expect not ready, expect brake ZONE, expect no brake, or expect evictions|elections|fenced|refused =|<|> NUMBER"

// Expectation is one line that begins with expect.
type Expectation struct {
	Line int
	Text string
	Zone string // that it names
	// Holds tells whether an outcome is as expected, and what it was.
	Holds func(model.Outcome) (ok bool, got string)
}

func (p *parser) takeExpectation(r *reader, text string) {
	text, _, _ = strings.Cut(text, "#")
	e := Expectation{Line: r.line, Text: strings.Join(strings.Fields(text), " ")}
	switch what := r.word(); what {
	case "ready":
		r.keyword("within")
		bound := r.duration(time.Millisecond)
		p.scenario.Config.ReadyWithin = bound
		e.Holds = func(o model.Outcome) (bool, string) {
			return o.Settled >= 0 && o.Settled <= bound, settled(o)
		}
	case "not":
		r.keyword("ready")
		e.Holds = func(o model.Outcome) (bool, string) { return o.Settled < 0, settled(o) }
	case "brake":
		e.Zone = r.word()
		e.Holds = func(o model.Outcome) (bool, string) { return o.Braked[e.Zone], braked(o) }
	case "no":
		r.keyword("brake")
		e.Holds = func(o model.Outcome) (bool, string) { return len(o.Braked) == 0, braked(o) }
	case "evictions", "elections", "fenced", "refused":
		e.Holds = r.comparison(what)
	default:
		r.failMeant(what, []string{"ready", "not", "brake", "no", "evictions", "elections", "fenced", "refused"}, "%q cannot be expected", what)
	}
	p.scenario.Expects = append(p.scenario.Expects, e)
}

func settled(o model.Outcome) string {
	if o.Settled < 0 {
		return "not ready at the end"
	}
	return fmt.Sprintf("ready %s after the last fault", o.Settled.Round(time.Millisecond))
}

func braked(o model.Outcome) string {
	var zones []string
	for zone := range o.Braked {
		zones = append(zones, zone)
	}
	if len(zones) == 0 {
		return "no brake"
	}
	slices.Sort(zones)
	return "brake in zone " + strings.Join(zones, ", ")
}

func (r *reader) comparison(what string) func(model.Outcome) (bool, string) {
	operator := r.word()
	if r.err == nil && !slices.Contains([]string{"=", "<", ">"}, operator) {
		r.fail("%q does not compare", operator)
	}
	bound := r.number(0, 1<<40)
	return func(o model.Outcome) (bool, string) {
		got := map[string]int{"evictions": o.Evictions, "elections": o.Elections, "fenced": o.Fenced, "refused": o.Refused}[what]
		ok := operator == "=" && got == bound || operator == "<" && got < bound || operator == ">" && got > bound
		return ok, fmt.Sprintf("%s: %d", what, got)
	}
}
