package turn

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/volume"

	"shoal/placement"
	"shoal/placement/schedule"
)

// SelectedNode is the annotation of a claim that tells its provisioner on which node the volume's first consumer runs.
// https://kubernetes.io/docs/reference/labels-annotations-taints/#volume-kubernetes-io-selected-node
const SelectedNode = "volume.kubernetes.io/selected-node"

// schedulerComponent is the name under which users know the source of scheduling events.
const schedulerComponent = "default-scheduler"

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func podRef(pod *corev1.Pod) placement.Ref {
	return placement.Ref{Kind: placement.KindPod, NamespacedName: keyOf(pod)}
}

// decide chooses nodes for the pods that wait and for those that this turn's plans create.
func (l *Leader) decide(t *Turn, now time.Time) {
	var candidates []*corev1.Pod
	for pod := range t.created() {
		candidates = append(candidates, pod)
	}
	candidates = append(candidates, l.nextWaiting()...)
	if len(candidates) > 0 {
		t.decisions = schedule.Schedule(l.view, candidates, now)
		if slices.ContainsFunc(t.decisions, func(d schedule.Decision) bool { return d.Node == "" }) {
			l.recheck(usageRef, now.Add(refreshUsage))
		}
	}
}

// created yields the pods that the turn's plans create, and the changes that do.
func (t *Turn) created() func(yield func(*corev1.Pod, *placement.Change) bool) {
	return func(yield func(*corev1.Pod, *placement.Change) bool) {
		for _, piece := range t.pieces {
			for i := range piece.Plan.Changes {
				change := &piece.Plan.Changes[i]
				if pod, ok := change.Object.(*corev1.Pod); ok && change.Verb == placement.Create && !yield(pod, change) {
					return
				}
			}
		}
	}
}

// Finish gives the plans to commit. A pod to be created gets its node in its own plan, so that both commit at once; a waiting one is
// bound, or told why not, by a plan of its own.
func (l *Leader) Finish(t *Turn, now time.Time) []Piece {
	created := map[types.UID]*placement.Change{}
	for pod, change := range t.created() {
		created[pod.UID] = change
	}
	work := t.pieces
	for _, decision := range t.decisions {
		pod := decision.Pod
		change, isNew := created[pod.UID]
		switch {
		case decision.Node != "" && t.refused[pod.UID]:
			// The node has given room away that this view does not know of. It has said so; the next turn decides with that.
			delete(l.asked, keyOf(pod))
			l.recheck(podRef(pod), now.Add(RetryClaim))
		case decision.Node != "" && !t.provisions(decision):
			l.recheck(podRef(pod), now.Add(RetryClaim))
		case decision.Node != "" && isNew && len(decision.Provision)+len(decision.Bind) > 0:
			// Once it exists it is bound together with its claims.
		case decision.Node != "" && isNew:
			change.Object.(*corev1.Pod).Spec.NodeName = decision.Node
			change.Events = append(change.Events, scheduled(pod, decision.Node))
		case decision.Node != "":
			work = append(work, l.giveVolumes(decision)...)
			if plan := l.binding(decision); len(plan.Changes) > 0 {
				work = append(work, Piece{podRef(pod), plan})
			}
		case !isNew:
			work = append(work, l.explain(decision, now)...)
		}
	}
	return work
}

// provisions notes where the decision's claims get their volumes. It is false if another pod of this turn takes one of them to another node:
// volumes of this kind are on one node only.
func (t *Turn) provisions(decision schedule.Decision) bool {
	for _, claim := range decision.Provision {
		if node, chosen := t.volumes[claim]; chosen && node != decision.Node {
			return false
		}
	}
	for _, claim := range decision.Provision {
		if t.volumes == nil {
			t.volumes = map[types.NamespacedName]string{}
		}
		t.volumes[claim] = decision.Node
	}
	return true
}

// giveVolumes writes into existing volumes which of the pod's claims they are for, each by a plan of its own: volumes are in another shard
// than the pod, and a leader of a third one may have chosen the same. Upstream's binder then joins volume and claim.
func (l *Leader) giveVolumes(decision schedule.Decision) []Piece {
	var work []Piece
	for _, b := range decision.Bind {
		pv, known := l.view.Volumes.Get("", b.Volume)
		claim, wanted := l.view.Claims.Get(b.Claim.Namespace, b.Claim.Name)
		if !known || !wanted {
			continue
		}
		given, changed, err := volume.GetBindVolumeToClaim(pv, claim)
		if err == nil && changed {
			ref := placement.Ref{Kind: placement.KindVolume, NamespacedName: keyOf(pv)}
			work = append(work, Piece{ref, placement.Plan{Changes: []placement.Change{placement.Updating(placement.Update, pv, given)}}})
		}
	}
	return work
}

// binding binds a pod that exists, and says in its claims where their volumes shall be. A pod whose volumes are made by somebody else than
// its node is bound only when they are there: where they can be made is not known before. So is one that gets existing volumes: another pod
// may get them first.
func (l *Leader) binding(decision schedule.Decision) placement.Plan {
	pod, node := decision.Pod, decision.Node
	var plan placement.Plan
	bind := len(decision.Bind) == 0
	for _, key := range decision.Provision {
		claim, ok := l.view.Claims.Get(key.Namespace, key.Name)
		if !ok {
			continue
		}
		bind = bind && l.madeByNodes(claim)
		if claim.Annotations[SelectedNode] == node {
			continue
		}
		chosen := claim.DeepCopy()
		if chosen.Annotations == nil {
			chosen.Annotations = map[string]string{}
		}
		chosen.Annotations[SelectedNode] = node
		plan.Add(placement.Updating(placement.Update, claim, chosen))
	}
	if bind {
		bound := *pod // the rest is shared: a Bind changes nothing else
		bound.Spec.NodeName = node
		plan.Add(placement.Updating(placement.Bind, pod, &bound, scheduled(pod, node)))
	}
	return plan
}

func (l *Leader) madeByNodes(claim *corev1.PersistentVolumeClaim) bool {
	if claim.Spec.StorageClassName == nil {
		return false
	}
	class, ok := l.view.StorageClasses.Get("", *claim.Spec.StorageClassName)
	return ok && class.Provisioner == l.options.NodeProvisioner
}

func scheduled(pod *corev1.Pod, node string) placement.Event {
	return placement.Event{
		Regarding: pod, Type: corev1.EventTypeNormal, Reason: "Scheduled", Component: schedulerComponent,
		Message: fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node),
	}
}
