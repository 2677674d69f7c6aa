package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/sim"
	"shoal/sim/model"
)

// Figure is one line of figures.
type Figure struct{ Name, Value string }

// Figures are how long it took to notice, to lead again and to run elsewhere, what clients would have noticed, and how fast it was simulated.
func Figures(r *sim.Result) []Figure {
	noticed, led, elsewhere := delays(r)
	var asked, failed, writes, unwritten int
	for _, s := range r.Samples {
		asked, failed, writes, unwritten = asked+s.Asked, failed+s.Failed, writes+s.Writes, unwritten+s.Unwritten
	}
	figures := []Figure{
		{"to notice that a node is lost", statistics(noticed)},
		{"to lead a shard again", statistics(led)},
		{"until what it ran is ready elsewhere", statistics(elsewhere)},
		{"requests to Services that failed", share(failed, asked)},
		{"writes that found no leader", share(unwritten, writes)},
	}
	speed := ""
	if r.Took > 0 {
		speed = fmt.Sprintf(", %s times as fast as time", significant(r.Simulated.Seconds()/r.Took.Seconds()))
	}
	return append(figures, Figure{"simulated", fmt.Sprintf("%s in %s%s", short(r.Simulated), short(r.Took), speed)})
}

// delays finds the effects of faults: how long after one each node was judged lost, for how long each shard had no leader, and how long
// after one as many pods were ready as were wanted, where pods had to be evicted for that.
func delays(r *sim.Result) (noticed, led, elsewhere []time.Duration) {
	befell, leaderless := map[string]time.Duration{}, map[uint64]time.Duration{}
	known := map[string]bool{}
	begun, last := time.Duration(-1), time.Duration(0) // of what is being replaced
	sample := 0
	settle := func(until time.Duration) {
		for ; sample < len(r.Samples) && r.Samples[sample].At <= until; sample++ {
			if s := r.Samples[sample]; begun >= 0 && s.At > last && s.Ready >= s.Wanted {
				elsewhere, begun = append(elsewhere, s.At-begun), -1
			}
		}
	}
	for _, e := range r.Events {
		settle(e.At)
		switch e.Kind {
		case model.EventFault:
			if form, _ := model.FormOf(e.Fault.Kind); form.Ends != "" || e.Fault.Kind == model.Wipe {
				for _, node := range e.Nodes {
					befell[node], known[node] = e.At, false
				}
			}
		case model.EventLost:
			if at, hit := befell[e.Node]; hit && !known[e.Node] {
				noticed, known[e.Node] = append(noticed, e.At-at), true
			}
		case model.EventLeaderless:
			leaderless[e.Shard] = e.At
		case model.EventLeads:
			if since, was := leaderless[e.Shard]; was && e.At-since >= handover {
				led = append(led, e.At-since)
			}
			delete(leaderless, e.Shard)
		case model.EventEvicted:
			at, hit := befell[e.Node]
			if !hit {
				at = e.At
			}
			if last = e.At; begun < 0 {
				begun = at
			}
		}
	}
	settle(r.Simulated)
	return noticed, led, elsewhere
}

// statistics are the median and the most.
func statistics(of []time.Duration) string {
	if len(of) == 0 {
		return "-"
	}
	of = slices.Sorted(slices.Values(of))
	median, most := short(of[len(of)/2]), short(of[len(of)-1])
	switch {
	case len(of) == 1:
		return median
	case median == most:
		return fmt.Sprintf("%s (%d times)", most, len(of))
	}
	return fmt.Sprintf("%s, at most %s (%d times)", median, most, len(of))
}

func share(part, of int) string {
	switch {
	case of == 0:
		return "-"
	case part == 0:
		return "none"
	}
	return significant(100*float64(part)/float64(of)) + " %"
}

// significant writes two digits of a number.
func significant(f float64) string {
	switch {
	case f >= 10:
		return fmt.Sprintf("%.0f", f)
	case f >= 1:
		return fmt.Sprintf("%.1f", f)
	default:
		return strings.TrimRight(fmt.Sprintf("%.3f", f), "0")
	}
}
