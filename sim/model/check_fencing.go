package model

import (
	"time"

	"shoal/runtime/containerd/fence"
)

// fencingCheck holds every machine to what the others count on when they replace a pod that must never run twice: so long after the last
// renewal of the machine's lease that counted, none of its own runs. The checker of identities sees only what comes of a breach.
type fencingCheck struct{}

// fencingBound is the watchdog's time, and the pause between two looks of it.
const fencingBound = fence.KillAfter + 750*time.Millisecond

func (fencingCheck) look(m *Model) {
	for _, n := range m.nodes {
		if !n.up || m.now-n.heartbeat <= fencingBound {
			continue
		}
		for _, uid := range n.running() {
			if c := n.pods[uid]; c.identity && c.running && !c.overdue {
				c.overdue = true
				m.violate(checkerFencing, "%s still runs %s/%s, %s after its lease was renewed last", n.name, c.pod.Namespace, c.pod.Name, m.now-n.heartbeat)
			}
		}
	}
}
