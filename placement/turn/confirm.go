package turn

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/placement"
)

// Accused names the nodes that evictions among the plans take for lost, sorted. What a leader has seen of the meta shard may be seconds
// old where the network is bad: a node that is back by now, and has been told that nothing was decided about its pods, must not lose them
// to somebody who does not know, and a zone of which most is lost by now must not lose pods because only a part is known to be. So the caller
// reads each of these nodes again, as the store has it now, sees what else of the nodes it has not learned by then, and asks Confirmed.
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

// Confirmed leaves out the evictions from nodes that are not among the lost ones, and those from zones of which the caller has news that the
// leader has not learned yet: a brake may have to hold there. They are decided again in a second.
func (l *Leader) Confirmed(work []Piece, lost map[string]bool, news []*corev1.Node, now time.Time) []Piece {
	unsettled := l.unsettled(news)
	return slices.DeleteFunc(work, func(piece Piece) bool {
		name, accused := l.accused(piece)
		if !accused {
			return false
		}
		if node, _ := l.view.Node(name); lost[name] && !unsettled[node.Zone()] {
			return false
		}
		l.Failed(piece, "", now)
		return true
	})
}

// unsettled are the zones of which more nodes are lost than the leader knows, or fewer.
func (l *Leader) unsettled(news []*corev1.Node) map[string]bool {
	zones := map[string]bool{}
	for _, object := range news {
		node := &placement.Node{Object: object}
		if known, ok := l.view.Node(object.Name); !ok || known.Lost() != node.Lost() {
			zones[node.Zone()] = true
		}
	}
	return zones
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
