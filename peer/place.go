package peer

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/schedule"
	"shoal/runtime/pods"
)

// peerAnnotation names, on a Node, the peer that runs it.
const peerAnnotation = "shoal.io/peer"

// schedulerComponent is the name under which users know the source of scheduling events.
const schedulerComponent = "default-scheduler"

type podKey = types.NamespacedName

func keyOf(o metav1.Object) podKey { return podKey{Namespace: o.GetNamespace(), Name: o.GetName()} }

// rooms asks a node for room, and tells what else the node has granted to pods of other shards (D6).
type rooms func(ctx context.Context, node *corev1.Node, claims []pods.Claim) ([]pods.Answer, placement.NodeUsage, error)

// place finds nodes for the pods that wait and for those that this turn's plans create. A pod to be created gets its node in its own
// plan, so that both commit at once; a waiting one is bound, or told why not, by a plan of its own.
func (l *leader) place(ctx context.Context, work []piece, now time.Time) []piece {
	created := map[types.UID]*placement.Change{}
	var candidates []*corev1.Pod
	for _, piece := range work {
		for i := range piece.plan.Changes {
			change := &piece.plan.Changes[i]
			if pod, ok := change.Object.(*corev1.Pod); ok && change.Verb == placement.Create {
				created[pod.UID] = change
				candidates = append(candidates, pod)
			}
		}
	}
	if l.waiting {
		l.waiting = false
		for _, pod := range l.view.Pending() {
			candidates = append(candidates, pod.Object)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	var more []piece
	decisions := schedule.Schedule(l.view, candidates, now)
	refused := l.claim(ctx, decisions)
	for _, decision := range decisions {
		pod := decision.Pod
		_, isNew := created[pod.UID]
		switch {
		case decision.Node != "" && refused[pod.UID]:
			// The node has given room away that this view does not know of. It has said so; the next turn decides with that.
			l.recheck(placement.Ref{Kind: placement.KindPod, NamespacedName: keyOf(pod)}, now.Add(retryClaim))
		case decision.Node != "" && isNew:
			created[pod.UID].Object.(*corev1.Pod).Spec.NodeName = decision.Node
			created[pod.UID].Events = append(created[pod.UID].Events, scheduled(pod, decision.Node))
		case decision.Node != "":
			more = append(more, binding(pod, decision.Node))
		case !isNew:
			more = append(more, l.explain(decision)...)
		}
	}
	return more
}

// retryClaim is how long a pod waits after a refused claim.
const retryClaim = 100 * time.Millisecond

// claim asks every chosen node, all at once, and returns the pods that were refused.
func (l *leader) claim(ctx context.Context, decisions []schedule.Decision) map[types.UID]bool {
	byNode := map[string][]pods.Claim{}
	for _, decision := range decisions {
		if decision.Node != "" {
			byNode[decision.Node] = append(byNode[decision.Node], pods.ClaimOf(decision.Pod))
		}
	}
	type reply struct {
		node    string
		claims  []pods.Claim
		answers []pods.Answer
		usage   placement.NodeUsage
		err     error
	}
	replies := make(chan reply, len(byNode))
	var group errgroup.Group
	for name, claims := range byNode {
		node, ok := l.view.Node(name)
		if !ok || node.Object == nil {
			continue
		}
		object := node.Object
		group.Go(func() error {
			answers, usage, err := l.rooms(ctx, object, claims)
			replies <- reply{name, claims, answers, usage, err}
			return nil
		})
	}
	_ = group.Wait() // errors come in the replies
	close(replies)

	refused := map[types.UID]bool{}
	for r := range replies {
		if r.err != nil {
			l.log.Info("a node does not answer a claim, its pods wait", "node", r.node, "error", r.err)
			for _, claim := range r.claims {
				refused[claim.PodUID] = true
			}
			continue
		}
		l.view.SetUsage(r.usage)
		for _, answer := range r.answers {
			if !answer.Granted {
				l.log.Info("a node refused a claim", "node", r.node, "pod", answer.PodUID, "reasons", answer.Reasons)
				refused[answer.PodUID] = true
				l.close(r.usage)
			}
		}
	}
	return refused
}

// avoidRefusing is how long a node that has refused a claim is taken for full, whatever it reports. Its reasons need not be ones that
// this view can see, and deciding for the same node again and again would starve pods for which others have room.
const avoidRefusing = time.Second

// close takes a node for full.
func (l *leader) close(usage placement.NodeUsage) {
	l.closed[usage.Node] = closedNode{usage: usage, until: time.Now().Add(avoidRefusing)}
	if node, ok := l.view.Node(usage.Node); ok {
		usage.Granted = usage.Granted.Plus(node.Allocatable)
		l.view.SetUsage(usage)
	}
}

// closedNode is a node that has refused a claim, and what it has reported.
type closedNode struct {
	usage placement.NodeUsage
	until time.Time
}

// reopen takes nodes for what they have reported, once they were avoided long enough.
func (l *leader) reopen(now time.Time) {
	for name, node := range l.closed {
		if !node.until.After(now) {
			delete(l.closed, name)
			l.view.SetUsage(node.usage)
		}
	}
}

// binding binds a pod that exists.
func binding(pod *corev1.Pod, node string) piece {
	bound := pod.DeepCopy()
	bound.Spec.NodeName = node
	change := placement.Updating(placement.Bind, pod, bound, scheduled(pod, node))
	return piece{placement.Ref{Kind: placement.KindPod, NamespacedName: keyOf(pod)}, placement.Plan{Changes: []placement.Change{change}}}
}

func scheduled(pod *corev1.Pod, node string) placement.Event {
	return placement.Event{
		Regarding: pod, Type: corev1.EventTypeNormal, Reason: "Scheduled", Component: schedulerComponent,
		Message: fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node),
	}
}

// explain says in the pod's condition and in an event why it has no node, once per reason.
func (l *leader) explain(decision schedule.Decision) []piece {
	pod, message := decision.Pod, decision.Unschedulable.Message
	key := keyOf(pod)
	if l.told[key] == message {
		return nil
	}
	l.told[key] = message
	want := pod.DeepCopy()
	setUnschedulable(&want.Status, message, time.Now())
	change := placement.Updating(placement.UpdateStatus, pod, want, placement.Event{
		Regarding: pod, Type: corev1.EventTypeWarning, Reason: "FailedScheduling", Message: message, Component: schedulerComponent,
	})
	return []piece{{placement.Ref{Kind: placement.KindPod, NamespacedName: key}, placement.Plan{Changes: []placement.Change{change}}}}
}

func setUnschedulable(status *corev1.PodStatus, message string, now time.Time) {
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message,
		LastTransitionTime: metav1.NewTime(now),
	}
	for i, have := range status.Conditions {
		if have.Type == corev1.PodScheduled {
			if have.Status == condition.Status {
				condition.LastTransitionTime = have.LastTransitionTime
			}
			status.Conditions[i] = condition
			return
		}
	}
	status.Conditions = append(status.Conditions, condition)
}
