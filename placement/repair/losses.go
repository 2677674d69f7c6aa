package repair

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// Losses is since when a leader has seen nodes as lost. It belongs to one leader and is measured by that leader's own clock, because the
// date in the taint is another peer's: of two peers whose clocks differ, one would give up a pod before its node has stopped it. What a
// leader sees, it sees after the loss was noted, so waiting from then on is waiting long enough. A new leader waits anew, which also gives
// nodes that come back together with it the time to say so.
type Losses map[string]loss

type loss struct {
	marked time.Time // the date that the node's taint carries, to tell one loss from the next
	seen   time.Time
}

// Note takes in which of the view's nodes are lost at now, and forgets those that are not.
func (l Losses) Note(v *placement.View, now time.Time) {
	for name := range l {
		if n, ok := v.Node(name); !ok || !n.Lost() {
			delete(l, name)
		}
	}
	for _, n := range v.Nodes() {
		if !n.Lost() {
			continue
		}
		if marked := lostAt(n); l[n.Name].seen.IsZero() || !l[n.Name].marked.Equal(marked) {
			l[n.Name] = loss{marked: marked, seen: now}
		}
	}
}

// since is when a node was first seen as lost; now if it was not noted.
func (l Losses) since(name string, now time.Time) time.Time {
	if known, ok := l[name]; ok {
		return known.seen
	}
	return now
}

// seenSince are a lost node's taints with the leader's own date in those that say that it is lost.
func seenSince(taints []corev1.Taint, since time.Time) []corev1.Taint {
	dated := append([]corev1.Taint(nil), taints...)
	for i := range dated {
		if dated[i].Key == corev1.TaintNodeUnreachable {
			dated[i].TimeAdded = &metav1.Time{Time: since}
		}
	}
	return dated
}
