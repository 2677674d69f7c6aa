package model

import "time"

// calmCheck sees to it that nobody fights over a node: one that is said to be ready by itself, and lost by the meta leader, by turns, costs
// a write each time, and its pods are never replaced, because each time it counts as lost only since then.
type calmCheck struct {
	turns map[string][]time.Duration // by node: when its readiness changed
}

// A network that flaps changes a node's readiness at most once in a lease's time.
const (
	calmWindow = 5 * time.Second
	calmTurns  = 10
)

func (c *calmCheck) changed(m *Model, node string) {
	turns := append(c.turns[node], m.now)
	for m.now-turns[0] > calmWindow {
		turns = turns[1:]
	}
	if len(turns) > calmTurns {
		m.violate(checkerCalm, "the readiness of %s has changed %d times within %s", node, len(turns), calmWindow)
		turns = nil
	}
	c.turns[node] = turns
}
