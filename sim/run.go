package sim

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"shoal/sim/model"
)

// Result is what came of a scenario.
type Result struct {
	Scenario *Scenario
	Outcome  model.Outcome
	Events   []model.Event
	Samples  []model.Sample
	// Took is how long the run took, by the real clock; Simulated is the virtual time, less than the scenario's if the run was stopped.
	Took, Simulated time.Duration
	Checks          []Check
}

// Check is a checker or an expectation, and its verdict.
type Check struct {
	Name  string // the checker's, or "line 7"
	Line  int    // of the expectation; 0 for a checker
	Says  string // what holds, or what was expected
	OK    bool
	Found []string // what was found instead, or what was as expected
}

// Options of a run. All may be left empty.
type Options struct {
	// Trace takes a line for everything that happens.
	Trace io.Writer
	// Progress is called for every sample.
	Progress func(model.Sample)
	// Samples is how many samples to take; 600 if not said.
	Samples int
}

const defaultSamples = 600

// mostEvents bounds what is kept of a long run of a large cluster; what comes later is only counted.
const mostEvents = 200_000

// Run simulates the scenario and compares. When ctx ends before it does, the result is that of the part which was simulated, without
// verdicts, and the error says why.
func (s *Scenario) Run(ctx context.Context, o Options) (*Result, error) {
	result := &Result{Scenario: s}
	cfg := s.Config
	cfg.Trace = o.Trace
	if o.Samples < 1 {
		o.Samples = defaultSamples
	}
	cfg.SampleEvery = max(cfg.Length/time.Duration(o.Samples), 50*time.Millisecond)
	cfg.Observer = &observer{result: result, progress: o.Progress}
	begun := time.Now()
	outcome, err := model.RunContext(ctx, cfg)
	result.Outcome, result.Took = outcome, time.Since(begun)
	if n := len(result.Samples); n > 0 {
		result.Simulated = result.Samples[n-1].At
	}
	if err != nil {
		return result, err
	}
	result.Simulated = cfg.Length
	result.judge()
	return result, nil
}

type observer struct {
	result   *Result
	progress func(model.Sample)
}

// Event keeps it.
func (o *observer) Event(e model.Event) {
	if len(o.result.Events) < mostEvents {
		o.result.Events = append(o.result.Events, e)
	}
}

// Sample keeps it, and passes it on.
func (o *observer) Sample(s model.Sample) {
	o.result.Samples = append(o.result.Samples, s)
	if o.progress != nil {
		o.progress(s)
	}
}

// judge gives every checker and every expectation its verdict.
func (r *Result) judge() {
	for _, checker := range model.Checkers {
		check := Check{Name: checker.Name, Says: checker.Holds, OK: true}
		for _, v := range r.Outcome.Violations {
			if v.Checker == checker.Name {
				check.OK = false
				check.Found = append(check.Found, fmt.Sprintf("%s: %s", v.At.Round(time.Millisecond), v.Message))
			}
		}
		r.Checks = append(r.Checks, check)
	}
	for _, v := range r.Outcome.Violations {
		if !slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Name == v.Checker }) {
			r.Checks = append(r.Checks, Check{Name: v.Checker, Says: "finds nothing", Found: []string{v.String()}})
		}
	}
	for _, e := range r.Scenario.Expects {
		ok, got := e.Holds(r.Outcome)
		r.Checks = append(r.Checks, Check{Name: fmt.Sprintf("line %d", e.Line), Line: e.Line, Says: e.Text, OK: ok, Found: []string{got}})
	}
}

// Failed are the checks that do not hold.
func (r *Result) Failed() []Check {
	var failed []Check
	for _, c := range r.Checks {
		if !c.OK {
			failed = append(failed, c)
		}
	}
	return failed
}
