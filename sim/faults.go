package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"shoal/sim/model"
)

const (
	formAt    = "at DURATION KIND [NUMBER] [TARGET] [to|from TARGET] [by DURATION] [rate NUMBER] [for DURATION]"
	formEvery = "from DURATION until DURATION every DURATION KIND …"
)

// between is the word between the two sides of a kind that has two.
func between(kind model.FaultKind) string {
	if kind == model.Block {
		return "to"
	}
	return "from"
}

// FaultLine is how a kind of fault is written, without the time.
func FaultLine(form model.FaultForm) string {
	line := string(form.Kind)
	if form.Count != "" {
		line += " NUMBER"
	}
	if form.Target {
		line += " TARGET"
	}
	if form.Other {
		line += " " + between(form.Kind) + " TARGET"
	}
	if form.By != "" {
		line += " by DURATION"
	}
	if form.Rate != "" {
		line += " rate NUMBER"
	}
	if form.Ends != "" {
		line += " [for DURATION]"
	}
	return line
}

func (p *parser) takeAt(r *reader) {
	p.takeFault(r, []time.Duration{r.duration(0)})
}

// takeEvery reads a fault that happens again and again.
func (p *parser) takeEvery(r *reader) {
	from := r.duration(0)
	r.keyword("until")
	until := r.duration(0)
	r.keyword("every")
	every := r.duration(time.Millisecond)
	if r.err == nil && until < from {
		r.fail("the time from %s until %s is none", from, until)
	}
	if r.err == nil && int64((until-from)/every) > mostFaults {
		r.fail("that makes more than %d faults", mostFaults)
	}
	var times []time.Duration
	for at := from; r.err == nil && at <= until; at += every {
		times = append(times, at)
	}
	p.takeFault(r, times)
}

// takeFault reads what happens at the times, by the form of its kind.
func (p *parser) takeFault(r *reader, times []time.Duration) {
	f := model.Fault{Kind: model.FaultKind(r.word())}
	form, known := model.FormOf(f.Kind)
	if !known {
		kinds := make([]string, len(model.FaultForms))
		for i, form := range model.FaultForms {
			kinds[i] = string(form.Kind)
		}
		r.form = "one of " + strings.Join(kinds, ", ")
		r.failMeant(string(f.Kind), kinds, "%q is nothing that can happen", f.Kind)
		return
	}
	r.form = "at DURATION " + FaultLine(form)
	column := r.last.column
	if form.Count != "" {
		f.Count = r.number(1, max(mostNodes, mostClients))
	}
	if form.Target {
		column = r.nextColumn()
		f.Target = r.target()
	}
	if form.Other {
		r.keyword(between(f.Kind))
		f.Other = r.target()
	}
	for len(r.words) > 0 && r.err == nil {
		switch {
		case form.By != "" && r.optional("by"):
			least := time.Duration(0)
			if f.Kind == model.Jump {
				least = -longest
			}
			f.By = r.duration(least)
		case form.Rate != "" && r.optional("rate"):
			f.Rate = r.rate()
		case form.Ends != "" && r.optional("for"):
			f.For = r.duration(time.Millisecond)
		default:
			r.word()
			r.failMeant(r.last.text, []string{"by", "rate", "for"}, "%q is too much", r.last.text)
		}
	}
	if r.err != nil {
		return
	}
	s := p.scenario
	if len(s.Config.Faults)+len(times) > mostFaults {
		r.fail("that makes more than %d faults", mostFaults)
		return
	}
	for _, at := range times {
		f.At = at
		s.Config.Faults = append(s.Config.Faults, f)
	}
	// The first stands for all: they differ only in their times, and the last must not come after the end.
	s.marks = append(s.marks, mark{p.line, column, r.form, f})
}

func (r *reader) nextColumn() int {
	if len(r.words) == 0 {
		return r.last.column
	}
	return r.words[0].column
}

// target reads n1, n1,n2, all, zone a, shard 2 or leader 2.
func (r *reader) target() string {
	text := r.word()
	switch text {
	case "zone", "shard", "leader":
		return text + " " + r.word()
	}
	return text
}

// FaultText is a fault as a line without its beginning says it.
func FaultText(f model.Fault) string {
	form, _ := model.FormOf(f.Kind)
	var b strings.Builder
	b.WriteString(string(f.Kind))
	if form.Count != "" {
		fmt.Fprintf(&b, " %d", f.Count)
	}
	if form.Target {
		b.WriteString(" " + f.Target)
	}
	if form.Other {
		b.WriteString(" " + between(f.Kind) + " " + f.Other)
	}
	if form.By != "" {
		b.WriteString(" by " + f.By.String())
	}
	if form.Rate != "" {
		b.WriteString(" rate " + strconv.FormatFloat(f.Rate, 'g', -1, 64))
	}
	if f.For > 0 {
		b.WriteString(" for " + f.For.String())
	}
	return b.String()
}
