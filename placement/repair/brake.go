package repair

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"shoal/placement"
)

// Brake says why evictions in a zone are held back.
type Brake struct {
	Zone        string
	Lost, Nodes int
	Reason      string
}

// zone is one zone's nodes, as far as losses go.
type zone struct {
	nodes int
	lost  []*placement.Node // in the order in which they were lost
}

// zonesOf costs as much as there are zones and nodes in trouble.
func zonesOf(v *placement.View) map[string]*zone {
	zones := map[string]*zone{}
	for name, nodes := range v.Zones() {
		zones[name] = &zone{nodes: nodes}
	}
	for _, n := range v.Troubled() {
		if n.Lost() {
			zones[n.Zone()].lost = append(zones[n.Zone()].lost, n)
		}
	}
	for _, z := range zones {
		slices.SortStableFunc(z.lost, func(a, b *placement.Node) int {
			return cmp.Or(lostAt(a).Compare(lostAt(b)), cmp.Compare(a.Name, b.Name))
		})
	}
	return zones
}

// together is the largest number of the lost nodes that were lost within one window. It counts
// nodes that are still lost only, so the brake comes off as soon as enough of them are back, and
// stays on as long as they are not.
func (z *zone) together(window time.Duration) int {
	most, first := 0, 0
	for i, n := range z.lost {
		for lostAt(n).Sub(lostAt(z.lost[first])) > window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// Brakes finds the zones in which nobody is evicted from lost nodes now.
func Brakes(v *placement.View, o Options) []Brake { return brakes(zonesOf(v), o) }

// brakes finds the zones in which nobody is to be evicted from lost nodes.
func brakes(zones map[string]*zone, o Options) []Brake {
	var found []Brake
	for _, name := range slices.Sorted(maps.Keys(zones)) {
		z := zones[name]
		lost := z.together(o.BrakeWindow)
		if lost < o.BrakeNodes || float64(lost) <= o.BrakeShare*float64(z.nodes) {
			continue
		}
		found = append(found, Brake{
			Zone: name, Lost: lost, Nodes: z.nodes,
			Reason: fmt.Sprintf("%d of %d nodes of zone %q were lost within %s: evictions from them wait until fewer are lost",
				lost, z.nodes, name, o.BrakeWindow),
		})
	}
	return found
}
