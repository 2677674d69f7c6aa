package sim

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"shoal/sim/model"
)

// The forms of the lines, as error messages and the README give them.
const (
	formSeed      = "seed NUMBER"
	formNodes     = "nodes NUMBER [zones NUMBER] [cpu QUANTITY] [memory QUANTITY] [pods NUMBER]"
	formShards    = "shards NUMBER"
	formWorkload  = "deployment|statefulset NAME replicas NUMBER cpu QUANTITY memory QUANTITY"
	formRandom    = "random NUMBER faults from DURATION until DURATION"
	formOperators = "operators"
	formRun       = "run DURATION"
	formDirective = "seed, nodes, shards, deployment, statefulset, job, workloads, operators, at, from, random, run or expect"
)

// parser is what is known while a text is read.
type parser struct {
	scenario     *Scenario
	file, folder string
	line         int
	begun        bool           // a line that is no comment was read
	seen         map[string]int // lines that may stand once
	pods         int
	runLine      int
}

func (p *parser) wrong(line, column int, reason, form string) *SyntaxError {
	return &SyntaxError{File: p.file, Line: line, Column: column, Reason: reason, Expected: form}
}

func (p *parser) take(text string) error {
	all := words(text)
	if len(all) == 0 {
		if comment, is := strings.CutPrefix(strings.TrimSpace(text), "#"); is && !p.begun {
			p.scenario.Title = strings.TrimSpace(p.scenario.Title + " " + strings.TrimSpace(comment))
		}
		return nil
	}
	p.begun = true
	r := &reader{file: p.file, line: p.line, words: all[1:], last: all[0]}
	lines := map[string]struct {
		form string
		take func(*reader)
	}{
		"seed":        {formSeed, func(r *reader) { p.scenario.Config.Seed = uint64(r.number(0, 1<<62)) }},
		"nodes":       {formNodes, p.takeNodes},
		"shards":      {formShards, func(r *reader) { p.scenario.Config.Shards = r.number(1, mostShards) }},
		"deployment":  {formWorkload, func(r *reader) { p.takeWorkload(r, false) }},
		"statefulset": {formWorkload, func(r *reader) { p.takeWorkload(r, true) }},
		"job":         {formJob, p.takeJob},
		"workloads":   {formManifests, p.takeManifests},
		"at":          {formAt, p.takeAt},
		"from":        {formEvery, p.takeEvery},
		"operators":   {formOperators, func(*reader) { p.scenario.Config.Operators = true }},
		"random":      {formRandom, p.takeRandom},
		"run":         {formRun, func(r *reader) { p.scenario.Config.Length, p.runLine = r.duration(time.Second), p.line }},
		"expect":      {formExpect, func(r *reader) { p.takeExpectation(r, text) }},
	}
	directive, known := lines[all[0].text]
	if !known {
		r.form = formDirective
		names := make([]string, 0, len(lines))
		for name := range lines {
			names = append(names, name)
		}
		slices.Sort(names)
		r.failMeant(all[0].text, names, "no line begins with %q", all[0].text)
		return r.err
	}
	r.form = directive.form
	switch name := all[0].text; name {
	case "seed", "nodes", "shards", "operators", "random", "run":
		if before := p.seen[name]; before != 0 {
			r.fail("line %d says it already", before)
			return r.err
		}
		if p.seen == nil {
			p.seen = map[string]int{}
		}
		p.seen[name] = p.line
	}
	directive.take(r)
	return r.end()
}

func (p *parser) takeNodes(r *reader) {
	c := &p.scenario.Config
	c.Nodes = r.number(1, mostNodes)
	give := map[corev1.ResourceName]resource.Quantity{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	for len(r.words) > 0 && r.err == nil {
		switch what := r.word(); what {
		case "zones":
			if c.Zones = r.number(1, mostNodes); c.Zones > 26 {
				r.fail("zones are named a to z, so there cannot be %d", c.Zones)
			}
		case "cpu", "memory":
			q := r.quantity()
			if r.err == nil && q.Sign() == 0 {
				r.fail("a node without %s runs nothing", what)
			}
			give[corev1.ResourceName(what)] = q
		case "pods":
			give[corev1.ResourcePods] = *resource.NewQuantity(int64(r.number(1, 10_000)), resource.DecimalSI)
		default:
			r.failMeant(what, []string{"zones", "cpu", "memory", "pods"}, "%q says nothing about nodes", what)
		}
	}
	c.Allocatable = give
}

func (p *parser) takeWorkload(r *reader, stateful bool) {
	w := model.Workload{Stateful: stateful, Name: p.workloadName(r)}
	r.keyword("replicas")
	w.Replicas = r.number(1, mostPods)
	p.addWorkload(r, w)
}

// workloadName takes a name that no other workload has.
func (p *parser) workloadName(r *reader) string {
	name := r.word()
	if r.err == nil && len(validation.IsDNS1123Label(name)) > 0 {
		r.fail("%q cannot be a name: lower-case letters, digits and dashes", name)
	}
	if slices.ContainsFunc(p.scenario.Config.Workloads, func(other model.Workload) bool { return other.Name == name }) {
		r.fail("there is a %q already", name)
	}
	return name
}

// addWorkload takes what each pod asks for, which ends the line, and adds the workload.
func (p *parser) addWorkload(r *reader, w model.Workload) {
	c := &p.scenario.Config
	if p.pods += w.Replicas; p.pods > mostPods {
		r.fail("that makes more than %d pods", mostPods)
	}
	r.keyword("cpu")
	cpu := r.quantity()
	r.keyword("memory")
	w.Requests = corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: r.quantity()}
	c.Workloads = append(c.Workloads, w)
}

func (p *parser) takeRandom(r *reader) {
	s := &p.scenario.Config.Random
	s.Faults = r.number(1, mostFaults)
	r.keyword("faults")
	r.keyword("from")
	s.From = r.duration(0)
	r.keyword("until")
	if s.Until = r.duration(0); r.err == nil && s.Until <= s.From {
		r.fail("%s is not after %s", s.Until, s.From)
	}
}

// finish looks at what can be judged only when the whole text is known.
func (p *parser) finish() error {
	s := p.scenario
	switch {
	case s.Config.Nodes == 0:
		return p.wrong(p.line+1, 0, "the text ends without saying how many nodes there are", formNodes)
	case s.Config.Length == 0:
		return p.wrong(p.line+1, 0, "the text ends without saying how long to run", formRun)
	case s.Config.Random.Until > s.Config.Length:
		return p.wrong(p.seen["random"], 0, "the faults go on after the run has ended ("+s.Config.Length.String()+")", formRandom)
	}
	s.countDaemons()
	for _, m := range s.marks {
		if err := m.fault.Check(s.Config.Nodes, s.Config.Zones, s.Config.Shards); err != nil {
			return p.wrong(m.line, m.column, err.Error(), m.form)
		}
		if m.fault.At > s.Config.Length {
			return p.wrong(m.line, m.column, m.fault.At.String()+" is after the run has ended ("+s.Config.Length.String()+")", m.form)
		}
	}
	for _, e := range s.Expects {
		if e.Zone != "" && !s.hasZone(e.Zone) {
			return p.wrong(e.Line, 0, "there is no zone \""+e.Zone+"\"", formExpect)
		}
	}
	return nil
}

// countDaemons gives every DaemonSet a pod for each node.
func (s *Scenario) countDaemons() {
	for i := range s.Config.Workloads {
		if w := &s.Config.Workloads[i]; w.Daemon {
			w.Replicas = s.Config.Nodes
		}
	}
}

func (s *Scenario) hasZone(zone string) bool {
	return len(zone) == 1 && zone[0] >= 'a' && int(zone[0]-'a') < min(s.Config.Zones, s.Config.Nodes)
}
