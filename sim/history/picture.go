package history

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"
)

// The picture's measures, in pixels.
const (
	pictureWidth  = 1600
	pictureMargin = 110
	rowHeight     = 16
)

// Draw writes a self-contained HTML page: what every client did over time, coloured by outcome, the faults as bands, the watches below,
// and where the violations became visible.
func Draw(w io.Writer, h *History, violations []Violation) error {
	p := newPicture(h, violations)
	return page.Execute(w, p)
}

// picture is what the page shows.
type picture struct {
	Meta       Meta
	Width      int
	Height     int
	Seconds    []mark
	Faults     []band
	Rows       []row
	Violations []mark
	Counts     string

	length time.Duration
}

type mark struct {
	X    int
	Text string
}

type band struct {
	X, Width int
	Text     string
	Minority bool
}

type row struct {
	Y     int
	Name  string
	Cells []cell
}

// cell is what one row shows in one column or stretch of columns.
type cell struct {
	X, Width int
	Class    string
	Text     string
}

func newPicture(h *History, violations []Violation) *picture {
	p := &picture{Meta: h.Meta, Width: pictureWidth + pictureMargin + 20}
	for i := range h.Operations {
		p.length = max(p.length, h.Operations[i].Return)
	}
	for i := range h.Watches {
		p.length = max(p.length, h.Watches[i].Closed)
	}
	p.length = max(p.length, time.Second)
	for at := time.Duration(0); at < p.length; at += step10(p.length) {
		p.Seconds = append(p.Seconds, mark{p.x(at), fmt.Sprintf("%g s", at.Seconds())})
	}
	for _, f := range h.Faults {
		p.Faults = append(p.Faults, band{p.x(f.Begin), max(2, p.x(f.End)-p.x(f.Begin)), f.What, f.Minority})
	}
	blamed := map[int]bool{}
	for _, v := range violations {
		for _, id := range v.Operations {
			blamed[id] = true
		}
		p.Violations = append(p.Violations, mark{p.x(min(v.At, p.length)), v.String()})
	}
	p.clients(h, blamed)
	p.watches(h)
	p.Height = 40 + rowHeight*(len(p.Rows)+1)
	p.Counts = fmt.Sprintf("%d operations, %d watches, %d faults, %d violations", len(h.Operations), len(h.Watches), len(h.Faults), len(violations))
	return p
}

// step10 is the distance of the marks on the axis: about ten of them.
func step10(length time.Duration) time.Duration {
	for _, step := range []time.Duration{time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute} {
		if length/step <= 20 {
			return step
		}
	}
	return length / 20
}

func (p *picture) x(at time.Duration) int {
	return pictureMargin + int(int64(at)*pictureWidth/int64(p.length))
}

// rank orders the classes by how much they have to say; of several operations in one column the gravest is shown.
var rank = map[string]int{"ok": 1, "failed": 2, "refused": 3, "unknown": 4, "blamed": 5}

func class(op *Operation, blamed map[int]bool) string {
	switch {
	case blamed[op.ID]:
		return "blamed"
	case op.Outcome == OK:
		return "ok"
	case op.Outcome == Unknown:
		return "unknown"
	case op.Failure == Refused:
		return "refused"
	default:
		return "failed"
	}
}

// clients adds a row per client.
func (p *picture) clients(h *History, blamed map[int]bool) {
	byClient := map[int]map[int]cell{}
	for i := range h.Operations {
		op := &h.Operations[i]
		columns := byClient[op.Client]
		if columns == nil {
			columns = map[int]cell{}
			byClient[op.Client] = columns
		}
		from, to := p.x(op.Invoke), p.x(op.Return)
		c := cell{X: from, Width: max(1, to-from), Class: class(op, blamed)}
		if c.Class != "ok" {
			c.Text = fmt.Sprintf("%.3f–%.3f s through %s: %s → %s %s", op.Invoke.Seconds(), op.Return.Seconds(), op.Peer, describe(op), answer(op), op.Error)
		}
		if have, taken := columns[from]; !taken || rank[have.Class] < rank[c.Class] || have.Class == c.Class && have.Width < c.Width {
			columns[from] = c
		}
	}
	var clients []int
	for client := range byClient {
		clients = append(clients, client)
	}
	slices.Sort(clients)
	for _, client := range clients {
		p.row(fmt.Sprintf("client %d", client), byClient[client])
	}
}

// watches adds a row per watcher.
func (p *picture) watches(h *History) {
	byClient := map[int]map[int]cell{}
	keys := map[int]string{}
	for i := range h.Watches {
		w := &h.Watches[i]
		if byClient[w.Client] == nil {
			byClient[w.Client] = map[int]cell{}
		}
		keys[w.Client] = w.Key
		c := cell{X: p.x(w.Invoke), Width: max(1, p.x(w.Closed)-p.x(w.Invoke)-1), Class: "watch"}
		if w.Opened == 0 {
			c.Class = "refused"
		}
		c.Text = fmt.Sprintf("%.3f–%.3f s: watch %d of %s after %d through %s, %d events %s", w.Invoke.Seconds(), w.Closed.Seconds(), w.ID, w.Key, w.After, w.Peer, len(w.Events), w.Error)
		byClient[w.Client][c.X] = c
	}
	var clients []int
	for client := range byClient {
		clients = append(clients, client)
	}
	slices.Sort(clients)
	for _, client := range clients {
		p.row(keys[client], byClient[client])
	}
}

func (p *picture) row(name string, columns map[int]cell) {
	r := row{Y: 30 + rowHeight*len(p.Rows), Name: name}
	for _, c := range columns {
		r.Cells = append(r.Cells, c)
	}
	slices.SortFunc(r.Cells, func(a, b cell) int { return cmp.Compare(a.X, b.X) })
	p.Rows = append(p.Rows, r)
}

var page = template.Must(template.New("history").Parse(`<!DOCTYPE html>
<meta charset="utf-8"><title>history, seed {{.Meta.Seed}}</title>
<style>
body { font: 13px sans-serif; margin: 1em }
text { font: 11px sans-serif }
.ok { fill: #7cb37c } .failed { fill: #9db6d6 } .refused { fill: #bbb } .unknown { fill: #e8a33d } .blamed { fill: #d00; stroke: #d00; stroke-width: 2 }
.watch { fill: #8a7cc0 } .fault { fill: #f6c8c8; opacity: .6 } .minority { fill: #f8e7b0; opacity: .7 } .violation { stroke: #d00; stroke-width: 2 }
li { white-space: pre-wrap }
</style>
<h3>Seed {{.Meta.Seed}}: {{.Counts}}</h3>
<p>{{.Meta.Note}} {{if not .Meta.Began.IsZero}}begun {{.Meta.Began.Format "2006-01-02 15:04:05"}}{{end}}. Operations by outcome:
<svg width="10" height="10"><rect class="ok" width="10" height="10"/></svg> acknowledged
<svg width="10" height="10"><rect class="failed" width="10" height="10"/></svg> a condition did not hold
<svg width="10" height="10"><rect class="refused" width="10" height="10"/></svg> refused
<svg width="10" height="10"><rect class="unknown" width="10" height="10"/></svg> unknown
<svg width="10" height="10"><rect class="blamed" width="10" height="10"/></svg> blamed.
Bands are faults, yellow ones of a minority. Point at anything to read it.</p>
<svg width="{{.Width}}" height="{{.Height}}">
{{range .Faults}}<rect class="{{if .Minority}}minority{{else}}fault{{end}}" x="{{.X}}" width="{{.Width}}" y="20" height="{{$.Height}}"><title>{{.Text}}</title></rect><text x="{{.X}}" y="29">{{.Text}}</text>
{{end}}{{range .Seconds}}<text x="{{.X}}" y="12">{{.Text}}</text>
{{end}}{{range .Rows}}{{$y := .Y}}<text x="0" y="{{.Y}}" dy="13">{{.Name}}</text>
{{range .Cells}}<rect class="{{.Class}}" x="{{.X}}" width="{{.Width}}" y="{{$y}}" height="12">{{if .Text}}<title>{{.Text}}</title>{{end}}</rect>
{{end}}{{end}}{{range .Violations}}<line class="violation" x1="{{.X}}" x2="{{.X}}" y1="14" y2="{{$.Height}}"><title>{{.Text}}</title></line>
{{end}}</svg>
<ol>{{range .Violations}}<li>{{.Text}}</li>{{end}}</ol>
`))
