package turn

import (
	"container/heap"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/schedule"
)

// MaxWaiting is how many waiting pods one turn decides about at most. A turn ends when all it has decided is committed, and what happens
// meanwhile, the loss of a node for instance, waits for the next: so a turn must not last as long as a backlog does.
const MaxWaiting = 1000

// roundRef stands for the waiting pods that a turn left for the next.
var roundRef = placement.Ref{Kind: "Round"}

// nextWaiting are the waiting pods to decide about in this turn, at most MaxWaiting. If there are more, turn follows turn until each has been
// asked about once, whoever cannot be placed: that is a round. Pods that come meanwhile take their place in the order of the queue.
func (l *Leader) nextWaiting() []*corev1.Pod {
	if l.asked == nil {
		if !l.waiting {
			return nil
		}
		l.waiting, l.asked = false, map[types.NamespacedName]bool{}
	}
	next, more := l.firstPending()
	if more {
		for _, pod := range next {
			l.asked[keyOf(pod)] = true
		}
		l.due.add(roundRef, time.Time{})
		return next
	}
	l.asked = nil
	if l.waiting { // for a reason that those asked before did not know of
		l.due.add(roundRef, time.Time{})
	}
	return next
}

// firstPending are those that come first in the queue, of the waiting pods that the round has not asked about, and whether there are others.
func (l *Leader) firstPending() (first []*corev1.Pod, more bool) {
	var h lastOnTop // mostly nobody waits
	l.view.EachPending(func(p *placement.Pod) {
		switch {
		case len(l.asked) > 0 && l.asked[p.Key()]:
		case len(h) < MaxWaiting:
			heap.Push(&h, p.Object)
		default:
			more = true
			if schedule.QueueOrder(p.Object, h[0]) < 0 {
				h[0] = p.Object
				heap.Fix(&h, 0)
			}
		}
	})
	slices.SortFunc(h, schedule.QueueOrder)
	return h, more
}

// lastOnTop is a heap of pods with the one that comes last in the queue on top.
type lastOnTop []*corev1.Pod

func (h lastOnTop) Len() int           { return len(h) }
func (h lastOnTop) Less(i, j int) bool { return schedule.QueueOrder(h[i], h[j]) > 0 }
func (h lastOnTop) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *lastOnTop) Push(pod any) { *h = append(*h, pod.(*corev1.Pod)) }

// Pop implements heap.Interface.
func (h *lastOnTop) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
