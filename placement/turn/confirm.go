package turn

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Accused names the nodes that evictions among the plans take for lost, sorted. What a leader has seen of the meta shard may be seconds
// old where the network is bad: a node that is back by now, and has been told that nothing was decided about its pods, must not lose them
// to somebody who does not know. So the caller reads each of these nodes again, as the store has it now, and asks Confirmed.
func (l *Leader) Accused(work []Piece) []string {
	var names []string
	for _, piece := range work {
		if name, lost := l.accused(piece); lost {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Confirmed leaves out the evictions from nodes that are not among the lost ones; they are decided again in a second.
func (l *Leader) Confirmed(work []Piece, lost map[string]bool, now time.Time) []Piece {
	return slices.DeleteFunc(work, func(piece Piece) bool {
		name, accused := l.accused(piece)
		if !accused || lost[name] {
			return false
		}
		l.Failed(piece, "", now)
		return true
	})
}

func (l *Leader) accused(piece Piece) (string, bool) {
	if piece.Ref != EvictionRef {
		return "", false
	}
	pod, ok := piece.Plan.Changes[0].Object.(*corev1.Pod)
	if !ok {
		return "", false
	}
	node, known := l.view.Node(pod.Spec.NodeName)
	return pod.Spec.NodeName, known && node.Lost()
}
