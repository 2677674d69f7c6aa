package workload

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// replicas is a set of equal pods that an owner keeps at a number: the part that ReplicaSets and
// ReplicationControllers share.
type replicas struct {
	owner
	template        *corev1.PodTemplateSpec
	account         types.UID // under which refused pods are recorded
	want            int32
	minReadySeconds int32
	component       string // reporting controller of events

	active      []*placement.Pod // claimed, not finished, not terminating
	terminating int
	waiting     int // active ones without a node
	created     int
	deleted     map[*placement.Pod]bool
}

// claimPods finds the owner's pods and adds adoptions and releases to the plan.
func (r *replicas) claimPods(v *placement.View, plan *placement.Plan) {
	for pod := range r.candidates(v) {
		if placement.Finished(pod.Object) {
			continue
		}
		mine, change := r.claim(pod.Object)
		if change {
			settle(r.owner, plan, pod.Object, mine)
		}
		switch {
		case !mine:
		case pod.Object.DeletionTimestamp != nil:
			r.terminating++
		default:
			r.active = append(r.active, pod)
			if pod.Object.Spec.NodeName == "" {
				r.waiting++
			}
		}
	}
}

// scale adds the creations or deletions that bring the active pods to the wanted number.
// related are the pods among which doubled-up ones are found: those of all sets of one Deployment.
func (r *replicas) scale(v *placement.View, plan *placement.Plan, related []*placement.Pod, now time.Time) {
	if r.object.GetDeletionTimestamp() != nil {
		return
	}
	diff := int(r.want) - len(r.active)
	switch {
	case diff > 0:
		r.create(v, plan, min(diff, quotaOf(v, r.account, r.waiting, plan, now)), now)
	case diff < 0:
		r.delete(plan, min(-diff, maxBurst), related, now)
	}
}

func (r *replicas) create(v *placement.View, plan *placement.Plan, count int, now time.Time) {
	names := placement.NewNames(string(r.object.GetUID()), now.UTC().Format(time.RFC3339Nano))
	given := map[string]bool{}
	for range count {
		pod := podFromTemplate(r.template, r.owner)
		for pod.Name == "" || given[pod.Name] {
			pod.Name = generatedName(pod.GenerateName, names.Suffix())
			if _, taken := v.Pod(pod.Namespace, pod.Name); taken {
				given[pod.Name] = true
			}
		}
		given[pod.Name] = true
		pod.UID = names.UID()
		plan.Add(placement.Change{Verb: placement.Create, Object: pod, Events: []placement.Event{{
			Regarding: r.object, Type: corev1.EventTypeNormal, Reason: "SuccessfulCreate",
			Message: "Created pod: " + pod.Name, Component: r.component,
		}}})
	}
	r.created = count
}

func (r *replicas) delete(plan *placement.Plan, count int, related []*placement.Pod, now time.Time) {
	r.deleted = map[*placement.Pod]bool{}
	for _, pod := range rankForDeletion(r.active, related, now)[:count] {
		r.deleted[pod] = true
		plan.Add(placement.Change{
			Verb: placement.Delete, Object: pod.Object, UID: pod.Object.UID,
			Events: []placement.Event{{
				Regarding: r.object, Type: corev1.EventTypeNormal, Reason: "SuccessfulDelete",
				Message: "Deleted pod: " + pod.Object.Name, Component: r.component,
			}},
		})
	}
}

// tally is the state of the replicas after the plan, in the words of their statuses.
type tally struct {
	replicas, fullyLabeled, ready, available, terminating int32
}

// count tallies what is left after the planned creations and deletions, and asks for a recheck
// when the next ready pod becomes available.
func (r *replicas) count(plan *placement.Plan, now time.Time) tally {
	t := tally{
		replicas:     int32(len(r.active) + r.created - len(r.deleted)),
		fullyLabeled: int32(r.created),
		terminating:  int32(r.terminating),
	}
	template := labels.SelectorFromSet(r.template.Labels)
	for _, pod := range r.active {
		if r.deleted[pod] {
			if pod.Object.Spec.NodeName != "" { // without a node it is gone at once
				t.terminating++
			}
			continue
		}
		if template.Matches(labels.Set(pod.Object.Labels)) {
			t.fullyLabeled++
		}
		if !placement.Ready(pod.Object) {
			continue
		}
		t.ready++
		available, at := placement.Available(pod.Object, r.minReadySeconds, now)
		if available {
			t.available++
		}
		plan.RecheckAt(at)
	}
	return t
}

// failure says why pods are missing that should have been created, "" if none are or nothing is in the way.
func (r *replicas) failure(v *placement.View) string {
	return shortage(v, r.account, int(r.want)-len(r.active)-r.created, r.waiting)
}

// failureReason names what went wrong for the ReplicaFailure condition, by the direction in
// which the set wanted to go.
func (r *replicas) failureReason() string {
	if int(r.want) < len(r.active) {
		return "FailedDelete"
	}
	return "FailedCreate"
}

func podFromTemplate(template *corev1.PodTemplateSpec, o owner) *corev1.Pod {
	meta := template.ObjectMeta.DeepCopy()
	pod := &corev1.Pod{Spec: *template.Spec.DeepCopy()}
	pod.Namespace = o.object.GetNamespace()
	pod.GenerateName = o.object.GetName() + "-"
	pod.Labels, pod.Annotations, pod.Finalizers = meta.Labels, meta.Annotations, meta.Finalizers
	o.adopt(pod)
	return pod
}

const (
	maxHostName  = 63 // characters that a host name may have, and so a pod's
	suffixLength = 5  // characters of a generated suffix
)

// generatedName joins base and suffix within the length of a host name.
func generatedName(base, suffix string) string {
	return base[:min(len(base), maxHostName-len(suffix))] + suffix
}
