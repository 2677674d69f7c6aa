package workload

import (
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal/placement"
)

// owner is an object that owns others by controller reference and selector.
type owner struct {
	object   placement.Object
	kind     schema.GroupVersionKind
	selector labels.Selector
}

// newOwner parses the selector. An empty or broken selector matches nothing rather than
// everything, so that a bad object cannot take over a namespace.
func newOwner(o placement.Object, kind schema.GroupVersionKind, selector *metav1.LabelSelector) owner {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil || parsed.Empty() {
		parsed = labels.Nothing()
	}
	return owner{object: o, kind: kind, selector: parsed}
}

func (o owner) reference() metav1.OwnerReference {
	return *metav1.NewControllerRef(o.object, o.kind)
}

func (o owner) matches(child metav1.Object) bool {
	return o.selector.Matches(labels.Set(child.GetLabels()))
}

// claim decides about one child: does it belong to the owner, and must its references change?
// An owned child that no longer matches is released, a matching one without a controller is
// adopted (Kubernetes' "Owners and dependents"). Terminating objects are neither.
func (o owner) claim(child placement.Object) (mine, change bool) {
	ref := metav1.GetControllerOfNoCopy(child)
	switch {
	case ref != nil && ref.UID == o.object.GetUID():
		if o.matches(child) {
			return true, false
		}
		return false, o.object.GetDeletionTimestamp() == nil
	case ref == nil && o.matches(child):
		adopt := o.object.GetDeletionTimestamp() == nil && child.GetDeletionTimestamp() == nil
		return adopt, adopt
	default:
		return false, false
	}
}

// candidates yields the pods that may be the owner's: those that name it, and those of its namespace that have no controller.
func (o owner) candidates(v *placement.View) iter.Seq[*placement.Pod] {
	return func(yield func(*placement.Pod) bool) {
		for _, candidates := range [][]*placement.Pod{v.PodsOf(o.object.GetUID()), v.Orphans(o.object.GetNamespace())} {
			for _, p := range candidates {
				if p.Object.Namespace == o.object.GetNamespace() && !yield(p) {
					return
				}
			}
		}
	}
}

// settle is for a child whose references must change: it plans the child's adoption, or its release if it is not the owner's, and returns
// the child as it will be, which may be changed further before the plan is handed out.
func settle[T interface {
	placement.Object
	DeepCopy() T
}](o owner, plan *placement.Plan, seen T, mine bool) T {
	want := seen.DeepCopy()
	if mine {
		o.adopt(want)
	} else {
		o.release(want)
	}
	plan.Add(placement.Updating(placement.Update, seen, want))
	return want
}

// warning is the event that says why nothing more is done for the owner now.
func (o owner) warning(component, reason, message string) placement.Event {
	return placement.Event{Regarding: o.object, Type: corev1.EventTypeWarning, Reason: reason, Message: message, Component: component}
}

// adopt makes the owner the controller of a child, in place.
func (o owner) adopt(child placement.Object) {
	child.SetOwnerReferences(append(child.GetOwnerReferences(), o.reference()))
}

// release takes the owner's reference off a child, in place.
func (o owner) release(child placement.Object) {
	child.SetOwnerReferences(slices.DeleteFunc(child.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
		return r.UID == o.object.GetUID()
	}))
}
