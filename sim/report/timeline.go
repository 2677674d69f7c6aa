// Package report tells people what a simulated scenario showed: a timeline, the verdicts of all checks, figures, and a picture.
package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"shoal/sim"
	"shoal/sim/model"
)

// Entry is one line of a timeline.
type Entry struct {
	At   time.Duration // since the start
	Kind model.EventKind
	Text string
}

// together is how far apart events of one kind may be to be told in one line.
const together = 2 * time.Second

// Timeline tells a run's events in order, what belongs together in one line.
func Timeline(r *sim.Result) []Entry {
	t := &teller{open: map[string]*group{}, befell: map[string]model.Event{}, leaderless: map[uint64]model.Event{}, lost: map[string]bool{}}
	for _, e := range r.Events {
		t.hear(e)
	}
	for _, number := range slices.Sorted(maps.Keys(t.leaderless)) {
		t.alone(t.leaderless[number])
	}
	for _, g := range t.open {
		t.close(g)
	}
	slices.SortStableFunc(t.entries, func(a, b ordered) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.turn, b.turn)) })
	entries := make([]Entry, len(t.entries))
	for i, e := range t.entries {
		entries[i] = e.Entry
	}
	return entries
}

// ordered is an entry, and how many were begun before it: those of one moment stay in the order in which things happened.
type ordered struct {
	Entry
	turn int
}

// group is events of one kind that are told together.
type group struct {
	turn        int
	kind        model.EventKind
	first, last time.Duration
	nodes, pods []string
	shards      []uint64
	late        []time.Duration // after what caused it
	after       string
}

type teller struct {
	entries    []ordered
	turns      int
	open       map[string]*group
	befell     map[string]model.Event // the last fault of each node
	leaderless map[uint64]model.Event // shards without a leader: since when
	lost       map[string]bool        // nodes that were judged lost
}

func (t *teller) say(e model.Event, format string, args ...any) {
	t.turns++
	t.entries = append(t.entries, ordered{Entry{e.At, e.Kind, fmt.Sprintf(format, args...)}, t.turns})
}

// hear takes an event into a group, or tells it at once.
func (t *teller) hear(e model.Event) {
	switch e.Kind {
	case model.EventFault:
		for _, node := range e.Nodes {
			t.befell[node] = e
		}
		// What comes after a fault is not told in one line with what came before it.
		for _, g := range t.open {
			t.close(g)
		}
		clear(t.open)
		text := sim.FaultText(e.Fault)
		if e.Fault.Kind == model.Core {
			text += ": they are healed and go on alone, for good"
		}
		t.say(e, "%s", text)
	case model.EventLeaderless:
		t.leaderless[e.Shard] = e
	case model.EventLeads:
		since, was := t.leaderless[e.Shard]
		delete(t.leaderless, e.Shard)
		switch {
		case was && e.At-since.At < handover:
			t.say(e, "%s takes %s over from %s", e.Node, shard(e.Shard), since.Node)
			return
		case was:
			t.alone(since)
			t.say(e, "%s leads %s, after %s without a leader", e.Node, shard(e.Shard), short(e.At-since.At))
			return
		}
		g := t.group(e, "")
		g.shards, g.nodes = append(g.shards, e.Shard), append(g.nodes, e.Node)
	case model.EventLost:
		t.lost[e.Node] = true
		fault, hurt := t.befell[e.Node]
		hurt = hurt && !ending(fault.Fault.Kind)
		g := t.group(e, string(fault.Fault.Kind))
		g.nodes = append(g.nodes, e.Node)
		if hurt {
			g.after, g.late = string(fault.Fault.Kind), append(g.late, e.At-fault.At)
		}
	case model.EventReady:
		again := ""
		if t.lost[e.Node] {
			again = " again"
		}
		g := t.group(e, again)
		g.nodes, g.after = append(g.nodes, e.Node), again
	case model.EventFenced, model.EventConnected:
		g := t.group(e, "")
		g.nodes = append(g.nodes, e.Node)
	case model.EventEvicted:
		g := t.group(e, e.Node)
		g.nodes, g.pods = append(g.nodes, e.Node), append(g.pods, e.Pod)
	case model.EventBound, model.EventPodReady:
		g := t.group(e, "")
		g.nodes, g.pods = append(g.nodes, e.Node), append(g.pods, e.Pod)
	case model.EventBraked:
		t.say(e, "evictions are held back: %s", e.Text)
	case model.EventDesired:
		t.say(e, "everything is as desired")
	case model.EventAstray:
		t.say(e, "not as desired any more: %s", e.Text)
	case model.EventJobEnded:
		t.say(e, "%s", e.Text)
	case model.EventViolation:
		t.say(e, "VIOLATION of %s", e.Text)
	default:
		t.say(e, "%s %s%s%s", e.Kind, e.Node, e.Pod, e.Text)
	}
}

// handover is how long a shard is without a leader at most when one hands over to the next, rather than being lost.
const handover = 100 * time.Millisecond

// alone tells that a shard has lost its leader.
func (t *teller) alone(e model.Event) { t.say(e, "%s has lost its leader, %s", shard(e.Shard), e.Node) }

// group is the open one that an event belongs to.
func (t *teller) group(e model.Event, key string) *group {
	key = string(e.Kind) + "/" + key
	g := t.open[key]
	if g != nil && e.At-g.last > together {
		t.close(g)
		g = nil
	}
	if g == nil {
		t.turns++
		g = &group{turn: t.turns, kind: e.Kind, first: e.At}
		t.open[key] = g
	}
	g.last = e.At
	return g
}

// close tells a group.
func (t *teller) close(g *group) {
	t.entries = append(t.entries, ordered{Entry{g.first, g.kind, g.text()}, g.turn})
}

func (g *group) text() string {
	for _, names := range []*[]string{&g.nodes, &g.pods} {
		slices.SortFunc(*names, natural)
		*names = slices.Compact(*names)
	}
	slices.Sort(g.shards)
	nodes := list(g.nodes, "node")
	switch g.kind {
	case model.EventLeads:
		if len(g.shards) == 1 {
			return nodes + " leads " + shard(g.shards[0])
		}
		return fmt.Sprintf("%d shards are led by %s", len(slices.Compact(g.shards)), nodes)
	case model.EventLost:
		text := nodes + are(g.nodes) + "judged lost"
		if len(g.late) > 0 {
			text += fmt.Sprintf(", %s after the %s", spread(g.late), g.after)
		}
		return text
	case model.EventReady:
		return nodes + are(g.nodes) + "ready" + g.after
	case model.EventFenced:
		return nodes + are(g.nodes) + "fenced: what must not run twice is stopped there"
	case model.EventConnected:
		return nodes + are(g.nodes) + "connected again"
	case model.EventEvicted:
		return list(g.pods, "pod") + are(g.pods) + "evicted from " + nodes
	case model.EventBound:
		return list(g.pods, "pod") + are(g.pods) + "placed on " + nodes
	default:
		return list(g.pods, "pod") + are(g.pods) + "ready" + lasting(g)
	}
}

// lasting says that a group went on for a while.
func lasting(g *group) string {
	if g.last-g.first < 500*time.Millisecond {
		return ""
	}
	return ", the last after " + short(g.last-g.first)
}

func are(names []string) string {
	if len(names) == 1 {
		return " is "
	}
	return " are "
}

// list names a few, and counts many.
func list(names []string, what string) string {
	switch n := len(names); {
	case n == 0:
		return "no " + what
	case n <= 4 && (what == "node" || n == 1):
		return strings.Join(names, ", ")
	default:
		return fmt.Sprintf("%d %ss", n, what)
	}
}

func shard(number uint64) string {
	if number == 0 {
		return "the meta shard"
	}
	return fmt.Sprintf("shard %d", number)
}

func spread(of []time.Duration) string {
	least, most := short(slices.Min(of)), short(slices.Max(of))
	if least == most {
		return least
	}
	return least + " to " + most
}

// natural compares names so that n9 comes before n10.
func natural(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) }

func trim(text, end, instead string) string {
	if rest, is := strings.CutSuffix(text, end); is {
		return rest + instead
	}
	return text
}

// short writes a duration as people say it.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return trim(fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60), "m0s", "m")
	default:
		return trim(fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60), "h0m", "h")
	}
}
