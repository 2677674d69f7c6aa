// Package sim reads scenarios: short texts that say what a cluster is, what happens to it, and what is expected to come of it. The
// simulation itself is in sim/model; the format is described in sim/README.md.
package sim

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"shoal/sim/model"
)

// Scenario is a parsed text.
type Scenario struct {
	Config  model.Config
	Expects []Expectation
}

// Expectation is one line that begins with expect.
type Expectation struct {
	Line int
	Text string
	// Holds tells whether an outcome is as expected, and what it was.
	Holds func(model.Outcome) (ok bool, got string)
}

// SyntaxError says which line of a scenario cannot be read, why, and what was expected there.
type SyntaxError struct {
	Line             int
	Reason, Expected string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d: %s; expected: %s", e.Line, e.Reason, e.Expected)
}

// The forms of the lines, as error messages and the README give them.
const (
	formSeed      = "seed NUMBER"
	formNodes     = "nodes NUMBER zones NUMBER cpu QUANTITY memory QUANTITY pods NUMBER"
	formShards    = "shards NUMBER"
	formWorkload  = "deployment|statefulset NAME replicas NUMBER cpu QUANTITY memory QUANTITY"
	formAt        = "at DURATION crash|restart|freeze|thaw|cut|heal NODE|zone ZONE, or at DURATION join NUMBER"
	formRandom    = "random NUMBER faults from DURATION until DURATION"
	formRun       = "run DURATION"
	formExpect    = "expect ready within DURATION, expect brake ZONE, expect no brake, or expect evictions|elections|fenced|refused =|<|> NUMBER"
	formDirective = "seed, nodes, shards, deployment, statefulset, at, random, run or expect"
)

// Parse reads a scenario. Its errors are *SyntaxError, or the reader's.
func Parse(r io.Reader) (*Scenario, error) {
	s := &Scenario{Config: model.Config{Seed: 1}}
	scanner := bufio.NewScanner(r)
	line := 0
	for scanner.Scan() {
		line++
		text, _, _ := strings.Cut(scanner.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if err := s.take(line, words); err != nil {
			return nil, err
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	switch {
	case s.Config.Nodes == 0:
		return nil, &SyntaxError{line, "the text ends without saying how many nodes there are", formNodes}
	case s.Config.Length == 0:
		return nil, &SyntaxError{line, "the text ends without saying how long to run", formRun}
	case len(s.Expects) == 0:
		return nil, &SyntaxError{line, "the text ends without an expectation", formExpect}
	}
	return s, nil
}

// reader takes the words of one line; the first mistake stays.
type reader struct {
	line  int
	words []string
	form  string
	err   error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = &SyntaxError{r.line, fmt.Sprintf(format, args...), r.form}
	}
}

func (r *reader) word() string {
	if len(r.words) == 0 {
		r.fail("the line ends too early")
		return ""
	}
	w := r.words[0]
	r.words = r.words[1:]
	return w
}

func (r *reader) keyword(want string) {
	if got := r.word(); got != want {
		r.fail("%q stands where %q belongs", got, want)
	}
}

func (r *reader) number(least int) int {
	w := r.word()
	n, err := strconv.Atoi(w)
	if err != nil || n < least {
		r.fail("%q is no number of at least %d", w, least)
	}
	return n
}

func (r *reader) duration() time.Duration {
	w := r.word()
	d, err := time.ParseDuration(w)
	if err != nil || d < 0 {
		r.fail("%q is no duration like 30s or 2m", w)
	}
	return d
}

func (r *reader) quantity() resource.Quantity {
	w := r.word()
	q, err := resource.ParseQuantity(w)
	if err != nil || q.Sign() < 0 {
		r.fail("%q is no quantity like 250m or 1Gi", w)
	}
	return q
}

func (r *reader) end() error {
	if len(r.words) > 0 {
		r.fail("%q is too much", strings.Join(r.words, " "))
	}
	return r.err
}

func (s *Scenario) take(line int, words []string) error {
	r := &reader{line: line, words: words[1:]}
	switch words[0] {
	case "seed":
		r.form = formSeed
		s.Config.Seed = uint64(r.number(0))
	case "nodes":
		r.form = formNodes
		s.takeNodes(r)
	case "shards":
		r.form = formShards
		s.Config.Shards = r.number(1)
	case "deployment", "statefulset":
		r.form = formWorkload
		s.takeWorkload(r, words[0] == "statefulset")
	case "at":
		r.form = formAt
		s.takeFault(r)
	case "random":
		r.form = formRandom
		s.Config.Random.Faults = r.number(1)
		r.keyword("faults")
		r.keyword("from")
		s.Config.Random.From = r.duration()
		r.keyword("until")
		s.Config.Random.Until = r.duration()
	case "run":
		r.form = formRun
		s.Config.Length = r.duration()
	case "expect":
		r.form = formExpect
		s.takeExpectation(r, strings.Join(words, " "))
	default:
		r.form = formDirective
		r.fail("nothing begins with %q", words[0])
		return r.err
	}
	return r.end()
}

func (s *Scenario) takeNodes(r *reader) {
	s.Config.Nodes = r.number(1)
	r.keyword("zones")
	s.Config.Zones = r.number(1)
	r.keyword("cpu")
	cpu := r.quantity()
	r.keyword("memory")
	memory := r.quantity()
	r.keyword("pods")
	most := r.number(1)
	s.Config.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory, corev1.ResourcePods: *resource.NewQuantity(int64(most), resource.DecimalSI),
	}
	if s.Config.Zones > 26 {
		r.fail("zones are named a to z, so there cannot be %d", s.Config.Zones)
	}
}

func (s *Scenario) takeWorkload(r *reader, stateful bool) {
	w := model.Workload{Stateful: stateful, Name: r.word()}
	if len(validation.IsDNS1123Label(w.Name)) > 0 {
		r.fail("%q cannot be a name: lower-case letters, digits and dashes", w.Name)
	}
	for _, other := range s.Config.Workloads {
		if other.Name == w.Name {
			r.fail("there is a %q already", w.Name)
		}
	}
	r.keyword("replicas")
	w.Replicas = r.number(1)
	r.keyword("cpu")
	cpu := r.quantity()
	r.keyword("memory")
	w.Requests = corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: r.quantity()}
	s.Config.Workloads = append(s.Config.Workloads, w)
}

func (s *Scenario) takeFault(r *reader) {
	f := model.Fault{At: r.duration(), Kind: model.FaultKind(r.word())}
	switch f.Kind {
	case model.Join:
		f.Count = r.number(1)
	case model.Crash, model.Restart, model.Freeze, model.Thaw, model.Cut, model.Heal:
		f.Target = r.word()
		if f.Target == "zone" {
			f.Target += " " + r.word()
			if zone := strings.TrimPrefix(f.Target, "zone "); r.err == nil && !s.hasZone(zone) {
				r.fail("there is no zone %q in the nodes line above", zone)
			}
		} else if n, err := strconv.Atoi(strings.TrimPrefix(f.Target, "n")); r.err == nil && (err != nil || n < 1 || n > s.Config.Nodes || f.Target[0] != 'n') {
			r.fail("there is no node %q: they are n1 to n%d", f.Target, s.Config.Nodes)
		}
	default:
		r.fail("%q is nothing that can happen", f.Kind)
	}
	s.Config.Faults = append(s.Config.Faults, f)
}

func (s *Scenario) hasZone(zone string) bool {
	return len(zone) == 1 && zone[0] >= 'a' && int(zone[0]-'a') < max(s.Config.Zones, 1) && s.Config.Nodes > int(zone[0]-'a')
}

func (s *Scenario) takeExpectation(r *reader, text string) {
	e := Expectation{Line: r.line, Text: text}
	switch what := r.word(); what {
	case "ready":
		r.keyword("within")
		bound := r.duration()
		s.Config.ReadyWithin = bound
		e.Holds = func(o model.Outcome) (bool, string) {
			return o.Settled >= 0 && o.Settled <= bound, fmt.Sprintf("ready %s after the last fault", o.Settled)
		}
	case "brake":
		zone := r.word()
		if r.err == nil && !s.hasZone(zone) {
			r.fail("there is no zone %q in the nodes line above", zone)
		}
		e.Holds = func(o model.Outcome) (bool, string) { return o.Braked[zone], fmt.Sprintf("braked zones: %v", o.Braked) }
	case "no":
		r.keyword("brake")
		e.Holds = func(o model.Outcome) (bool, string) {
			return len(o.Braked) == 0, fmt.Sprintf("braked zones: %v", o.Braked)
		}
	case "evictions", "elections", "fenced", "refused":
		e.Holds = r.comparison(what)
	default:
		r.fail("%q cannot be expected", what)
	}
	s.Expects = append(s.Expects, e)
}

func (r *reader) comparison(what string) func(model.Outcome) (bool, string) {
	operator := r.word()
	if !strings.Contains("= < >", operator) || len(operator) != 1 {
		r.fail("%q does not compare", operator)
	}
	bound := r.number(0)
	return func(o model.Outcome) (bool, string) {
		got := map[string]int{"evictions": o.Evictions, "elections": o.Elections, "fenced": o.Fenced, "refused": o.Refused}[what]
		ok := operator == "=" && got == bound || operator == "<" && got < bound || operator == ">" && got > bound
		return ok, fmt.Sprintf("%s: %d", what, got)
	}
}

// Verdict is what a scenario came to: its outcome, and a line for each violation and each disappointed expectation.
type Verdict struct {
	Outcome model.Outcome
	Wrong   []string
}

// Run simulates the scenario and compares. trace may be nil.
func (s *Scenario) Run(trace io.Writer) (Verdict, error) {
	cfg := s.Config
	cfg.Trace = trace
	outcome, err := model.Run(cfg)
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{Outcome: outcome}
	for _, violation := range outcome.Violations {
		v.Wrong = append(v.Wrong, violation.String())
	}
	for _, e := range s.Expects {
		if ok, got := e.Holds(outcome); !ok {
			v.Wrong = append(v.Wrong, fmt.Sprintf("line %d: %s, but %s", e.Line, e.Text, got))
		}
	}
	return v, nil
}
