package repair

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// Losses is what a leader remembers of lost nodes: since when it has seen them, and whose turn it is to be evicted.
//
// It belongs to one leader and is measured by that leader's own clock, because the date in a taint is another peer's: of two peers whose
// clocks differ, one would give up a pod before its node has stopped it. What a leader sees, it sees after the loss was noted, so waiting
// from then on is waiting long enough. A new leader waits anew with pods that must never run twice. With the others it believes the date,
// but gives nodes that come back together with it, after a majority was lost, the time to say so.
type Losses struct {
	nodes map[string]*loss
	next  map[string]time.Time // by zone: when the next lost node may have its turn
	old   bool                 // the leader has looked before: what it sees now, it sees happen
}

// NewLosses returns the memory of a leader that has seen nothing yet.
func NewLosses() *Losses { return &Losses{nodes: map[string]*loss{}, next: map[string]time.Time{}} }

// loss is one node's.
type loss struct {
	marked time.Time // the date that its taint carries, to tell one loss from the next
	seen   time.Time // since when it is surely lost
	since  time.Time // from when on tolerations count
	// Its pods leave no sooner than free, and everything of it is delayed. Under a brake nothing is given; what comes off then still goes
	// node by node.
	given bool
	held  bool // by a brake
	free  time.Time
	delay time.Duration
}

// note takes in which of the view's nodes are lost at now, and forgets those that are not.
func (l *Losses) note(v *placement.View, zones map[string]*zone, held []Brake, o Options, now time.Time) {
	for name := range l.nodes {
		if n, ok := v.Node(name); !ok || !n.Lost() {
			delete(l.nodes, name)
		}
	}
	for name, z := range zones {
		braked := slices.ContainsFunc(held, func(b Brake) bool { return b.Zone == name })
		for _, n := range z.lost {
			known, marked := l.nodes[n.Name], lostAt(n)
			if known == nil || !known.marked.Equal(marked) {
				known = &loss{marked: marked, seen: now, since: now, free: now}
				if !l.old && marked.Before(now) {
					known.since, known.free = marked, now.Add(o.TakeoverGrace)
				}
				l.nodes[n.Name] = known
			}
			switch {
			case braked:
				known.given, known.held = false, true
			case !known.given:
				// A brake comes off when enough nodes are back. The others are most likely on their way: they get the time of a lease.
				free := now
				if known.held {
					free = now.Add(o.LeaseTimeout)
				}
				slot := later(now, l.next[name])
				known.given, known.held, known.free, known.delay = true, false, later(known.free, free), slot.Sub(now)
				l.next[name] = slot.Add(o.NodeInterval)
			}
		}
		if len(z.lost) == 0 {
			delete(l.next, name)
		}
	}
	l.old = true
}

// turn is when what is due at a moment may happen to a lost node's pods.
func (l *loss) turn(due time.Time) time.Time { return later(due, l.free).Add(l.delay) }

// seenSince are a lost node's taints with the leader's own date in those that say that it is lost.
func seenSince(taints []corev1.Taint, since time.Time) []corev1.Taint {
	dated := slices.Clone(taints)
	for i := range dated {
		if dated[i].Key == corev1.TaintNodeUnreachable {
			dated[i].TimeAdded = &metav1.Time{Time: since}
		}
	}
	return dated
}
