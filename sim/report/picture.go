package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/sim"
	"shoal/sim/model"
)

// The picture's measures, in SVG units. All panels share the axis of time.
const (
	pictureWidth = 1100
	plotLeft     = 96
	plotRight    = pictureWidth - 28
	laneHeight   = 14
	curveHeight  = 90
	panelGap     = 40
	// mostLanes is how many lanes a panel may have before it becomes a curve.
	mostLanes = 40
)

// Picture is what the template draws.
type Picture struct {
	Width, Height, Left, Right, Bottom int
	Ticks                              []tick
	Bands                              []shape // behind everything: while a fault was on
	Panels                             []Panel
}

// Panel is one diagram: lanes with bars, or curves.
type Panel struct {
	Title  string
	Y      int // of the title's base line
	Labels []label
	Bars   []shape
	Curves []curve
	Top    int
	Height int
}

type tick struct {
	X    float64
	Text string
}

type label struct {
	Y    int
	Text string
}

// shape is a rectangle; Title is what it says when pointed at, Text what stands in it.
type shape struct {
	X, W        float64
	Y, H        int
	Class       string
	Title, Text string
}

type curve struct{ Class, Points string }

// drawer turns times into places.
type drawer struct {
	result *sim.Result
	y      int
}

func (d *drawer) x(at time.Duration) float64 {
	whole := max(d.result.Scenario.Config.Length, time.Millisecond)
	return plotLeft + (plotRight-plotLeft)*float64(min(at, whole))/float64(whole)
}

func (d *drawer) bar(from, until time.Duration, y, h int, class, title string) shape {
	x := d.x(from)
	return shape{X: x, W: max(d.x(until)-x, 1), Y: y, H: h, Class: class, Title: title}
}

// Draw makes the picture of a run.
func Draw(r *sim.Result) Picture {
	d := &drawer{result: r, y: 30}
	bands := faultBands(r)
	p := Picture{Width: pictureWidth, Left: plotLeft, Right: plotRight}
	p.Panels = append(p.Panels, d.peers(bands), d.leaders(), d.pods(), d.requests())
	for _, b := range bands {
		p.Bands = append(p.Bands, d.bar(b.from, b.until, 0, 0, "band", b.text()))
	}
	p.Bands = firstOfEach(p.Bands)
	p.Bottom = d.y - panelGap + 14
	p.Height = p.Bottom + 22
	for i := range p.Bands {
		p.Bands[i].Y, p.Bands[i].H = 12, p.Bottom-12
	}
	for i := range 11 {
		at := r.Scenario.Config.Length * time.Duration(i) / 10
		p.Ticks = append(p.Ticks, tick{d.x(at), strings.Replace(strings.Replace(short(at), ".0 s", " s", 1), "0 ms", "0", 1)})
	}
	return p
}

// firstOfEach leaves out bands that cover the same time, which the machines of one fault do.
func firstOfEach(bands []shape) []shape {
	return slices.CompactFunc(bands, func(a, b shape) bool { return a.X == b.X && a.W == b.W && a.Title == b.Title })
}

// band is a fault that was on for a while.
type band struct {
	node        string
	fault       model.Fault
	from, until time.Duration
}

func (b band) text() string {
	return fmt.Sprintf("%s, %s to %s", sim.FaultText(b.fault), short(b.from), short(b.until))
}

// faultBands pairs each fault with what ended it, for every machine that it befell. What has no end is on for a moment.
func faultBands(r *sim.Result) []band {
	var done []band
	open := map[string][]band{} // by node
	var core time.Duration      // when only a core was healed: what would have ended later does not
	for _, e := range r.Events {
		if e.Kind != model.EventFault {
			continue
		}
		if e.Fault.Kind == model.Core {
			core = e.At
		}
		form, _ := model.FormOf(e.Fault.Kind)
		nodes := e.Nodes
		if len(nodes) == 0 {
			nodes = []string{""}
		}
		ended := map[model.Fault]bool{} // that stood between two sides: it is over for both
		closeBands := func(node string, over func(band) bool) {
			open[node] = slices.DeleteFunc(open[node], func(b band) bool {
				if !over(b) {
					return false
				}
				b.until = e.At
				done = append(done, b)
				ended[b.fault] = b.fault.Other != ""
				return true
			})
		}
		for _, node := range nodes {
			closeBands(node, func(b band) bool {
				ends, _ := model.FormOf(b.fault.Kind)
				return ends.Ends == e.Fault.Kind || e.Fault.Kind == model.Core
			})
		}
		for node := range open {
			closeBands(node, func(b band) bool { return ended[b.fault] })
		}
		for _, node := range nodes {
			if form.Ends != "" {
				open[node] = append(open[node], band{node: node, fault: e.Fault, from: e.At})
			} else if !ending(e.Fault.Kind) {
				done = append(done, band{node: node, fault: e.Fault, from: e.At, until: e.At})
			}
		}
	}
	for _, bands := range open {
		for _, b := range bands {
			b.until = r.Simulated
			if b.fault.For > 0 && (core == 0 || b.from+b.fault.For < core) {
				b.until = min(b.until, b.from+b.fault.For)
			}
			done = append(done, b)
		}
	}
	slices.SortFunc(done, func(a, b band) int {
		if a.from != b.from {
			return int(a.from - b.from)
		}
		return natural(a.node, b.node)
	})
	return done
}

// ending tells whether a kind does nothing but end others.
func ending(kind model.FaultKind) bool {
	return slices.ContainsFunc(model.FaultForms, func(f model.FaultForm) bool { return f.Ends == kind })
}

// peers draws a lane for each machine, with what befell it and when the cluster took it for lost; or curves, if there are many.
func (d *drawer) peers(bands []band) Panel {
	r := d.result
	names := nodeNames(r)
	if len(names) > mostLanes {
		up := func(s model.Sample) (int, int) { return s.NodesUp, s.Nodes }
		ready := func(s model.Sample) (int, int) { return s.NodesReady, s.Nodes }
		return d.curves("Peers: that run and hear the others (line), that the cluster takes for ready (area)", ready, up)
	}
	p := d.lanes("Peers: hurt (coloured), taken for lost by the others (dark line)", names)
	lane := map[string]int{}
	joined := map[string]time.Duration{}
	for i, name := range names {
		lane[name] = p.Top + i*laneHeight
	}
	lost := map[string]time.Duration{}
	seen := map[string]bool{}
	var over []shape
	for _, e := range r.Events {
		y, known := lane[e.Node]
		if !known {
			continue
		}
		switch e.Kind {
		case model.EventReady:
			if !seen[e.Node] {
				seen[e.Node], joined[e.Node] = true, e.At
			}
			if at, was := lost[e.Node]; was {
				over = append(over, d.bar(at, e.At, y+laneHeight-6, 3, "lost", lostTitle(e.Node, at, e.At)))
				delete(lost, e.Node)
			}
		case model.EventLost:
			lost[e.Node] = e.At
		}
	}
	for _, name := range names {
		if at, is := lost[name]; is {
			over = append(over, d.bar(at, r.Simulated, lane[name]+laneHeight-6, 3, "lost", lostTitle(name, at, r.Simulated)))
		}
		p.Bars = append(p.Bars, d.bar(joined[name], r.Simulated, lane[name]+2, laneHeight-4, "up", name))
	}
	for _, b := range bands {
		if y, known := lane[b.node]; known {
			p.Bars = append(p.Bars, d.bar(b.from, b.until, y+2, laneHeight-4, "fault "+family(b.fault.Kind), b.node+": "+b.text()))
		}
	}
	p.Bars = append(p.Bars, over...)
	return p
}

func lostTitle(node string, from, until time.Duration) string {
	return fmt.Sprintf("%s is taken for lost, %s to %s", node, short(from), short(until))
}

// family groups kinds of faults by what they hurt; each has a colour.
func family(kind model.FaultKind) string {
	switch kind {
	case model.Crash, model.Kill, model.Wipe, model.Restart, model.Upgrade, model.Leave:
		return "machine"
	case model.Freeze, model.Slow, model.SlowDisk, model.FullDisk:
		return "slow"
	case model.Jump, model.Drift:
		return "clock"
	case model.Drain, model.Handover, model.Recover, model.Overload:
		return "order"
	default:
		return "network"
	}
}

// nodeNames are the machines that events speak of, in order.
func nodeNames(r *sim.Result) []string {
	seen := map[string]bool{}
	var names []string
	for _, e := range r.Events {
		if e.Kind == model.EventReady && !seen[e.Node] {
			seen[e.Node] = true
			names = append(names, e.Node)
		}
	}
	slices.SortFunc(names, natural)
	return names
}

// leaders draws a lane for each shard, with who led it; gaps are times without a leader.
func (d *drawer) leaders() Panel {
	r := d.result
	number := r.Scenario.Config.Shards + 1
	if number > mostLanes {
		led := func(s model.Sample) (int, int) { return s.Led, s.Shards }
		return d.curves("Shards that have a leader", led)
	}
	names := make([]string, number)
	for i := range names {
		names[i] = fmt.Sprintf("shard %d", i)
	}
	names[0] = "meta shard"
	p := d.lanes("Shards and their leaders (red: nobody leads)", names)
	type term struct {
		node string
		from time.Duration
	}
	now := map[uint64]term{}
	end := func(number uint64, until time.Duration) {
		t, is := now[number]
		if !is {
			return
		}
		class, title := "leader", fmt.Sprintf("%s leads %s, %s to %s", t.node, shard(number), short(t.from), short(until))
		if t.node == "" {
			class, title = "leaderless", fmt.Sprintf("nobody leads %s, %s to %s", shard(number), short(t.from), short(until))
		}
		bar := d.bar(t.from, until, p.Top+int(number)*laneHeight+2, laneHeight-4, class, title)
		if t.node != "" && bar.W > float64(8*len(t.node)) {
			bar.Text = t.node
		}
		p.Bars = append(p.Bars, bar)
	}
	for _, e := range r.Events {
		if e.Kind == model.EventLeads || e.Kind == model.EventLeaderless {
			end(e.Shard, e.At)
			now[e.Shard] = term{from: e.At}
			if e.Kind == model.EventLeads {
				now[e.Shard] = term{e.Node, e.At}
			}
		}
	}
	for i := range number {
		end(uint64(i), r.Simulated)
	}
	return p
}

func (d *drawer) pods() Panel {
	return d.curves("Pods: ready (area) of those wanted (line)", func(s model.Sample) (int, int) { return s.Ready, s.Wanted })
}

func (d *drawer) requests() Panel {
	return d.curves("Requests to Services that fail (area), writes that find no leader (line), in percent",
		func(s model.Sample) (int, int) { return percent(s.Failed, s.Asked), 100 },
		func(s model.Sample) (int, int) { return percent(s.Unwritten, s.Writes), 100 })
}

func percent(part, of int) int {
	if of == 0 {
		return 0
	}
	return (100*part + of - 1) / of
}

// lanes begins a panel with a labelled lane for each name.
func (d *drawer) lanes(title string, names []string) Panel {
	p := Panel{Title: title, Y: d.y, Top: d.y + 8, Height: len(names) * laneHeight}
	for i, name := range names {
		p.Labels = append(p.Labels, label{p.Top + i*laneHeight + laneHeight - 4, name})
	}
	d.y = p.Top + p.Height + panelGap
	return p
}

// curves draws an area, and lines over it. Each gives a value, and the most it can be.
func (d *drawer) curves(title string, area func(model.Sample) (int, int), lines ...func(model.Sample) (int, int)) Panel {
	p := Panel{Title: title, Y: d.y, Top: d.y + 8, Height: curveHeight}
	most := 1
	for _, s := range d.result.Samples {
		value, whole := area(s)
		most = max(most, value, whole)
	}
	p.Labels = []label{{p.Top + 10, fmt.Sprint(most)}, {p.Top + curveHeight, "0"}}
	place := func(value int) float64 { return float64(p.Top) + curveHeight*(1-float64(value)/float64(most)) }
	var points, limit strings.Builder
	others := make([]strings.Builder, len(lines))
	fmt.Fprintf(&points, "%d,%d", plotLeft, p.Top+curveHeight)
	x := float64(plotLeft)
	for _, s := range d.result.Samples {
		x = d.x(s.At)
		value, whole := area(s)
		fmt.Fprintf(&points, " %.1f,%.1f", x, place(value))
		fmt.Fprintf(&limit, " %.1f,%.1f", x, place(whole))
		for i, line := range lines {
			value, _ := line(s)
			fmt.Fprintf(&others[i], " %.1f,%.1f", x, place(value))
		}
	}
	fmt.Fprintf(&points, " %.1f,%d", x, p.Top+curveHeight)
	p.Curves = append(p.Curves, curve{"area", points.String()})
	if len(lines) == 0 {
		p.Curves = append(p.Curves, curve{"line", limit.String()})
	}
	for i := range others {
		p.Curves = append(p.Curves, curve{"line", others[i].String()})
	}
	d.y = p.Top + p.Height + panelGap
	return p
}
