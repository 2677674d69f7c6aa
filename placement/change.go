package placement

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Verb says what a Change does to its object.
type Verb string

// The verbs, as the API knows them. Update writes everything but status, UpdateStatus only
// status (and metadata).
const (
	Create       Verb = "create"
	Update       Verb = "update"
	UpdateStatus Verb = "update-status"
	Delete       Verb = "delete"
	// Bind gives a pod that exists the node in Object's spec.nodeName, and changes nothing else.
	Bind Verb = "bind"
)

// Change is one write that a decision wants.
type Change struct {
	Verb Verb
	// Object is the object as it shall be (for Delete: as it was seen). Its kind is its Go type;
	// TypeMeta is not set. A Create carries the UID that its children in the same Plan name as
	// their owner; the API keeps it.
	Object Object
	// UID and ResourceVersion must still be the stored ones; empty means no such condition.
	// The second change of a Plan to one object carries no ResourceVersion, because the first
	// has moved it.
	UID             types.UID
	ResourceVersion string
	// GracePeriodSeconds is for Delete; nil means the object's own period.
	GracePeriodSeconds *int64
	// Propagation is for Delete; nil means the kind's default.
	Propagation *metav1.DeletionPropagation
	// Disruption is for Delete of a Pod: a condition that its status gets first, in the same
	// transaction, so that whoever counts its failures knows that it was not its own.
	Disruption *corev1.PodCondition
	// Events are to be recorded when the change has been committed.
	Events []Event
}

// Event is what users see under "Events" of an object.
type Event struct {
	Regarding Object
	Type      string // corev1.EventTypeNormal or EventTypeWarning
	Reason    string
	Message   string
	Component string // reporting controller, by upstream's name
}

// Plan is what shall change, in order, and when the same question should be asked again even
// if nothing happens (zero: never). All changes of a Plan belong to one namespace and can commit
// as one transaction.
type Plan struct {
	Changes []Change
	Recheck time.Time
	// Events are what is to be said although nothing changes: why the plan does less than it was
	// asked for, say. The same plan gives the same events again; whoever records them tells each
	// only once.
	Events []Event
}

// Add appends changes.
func (p *Plan) Add(changes ...Change) { p.Changes = append(p.Changes, changes...) }

// Say appends events.
func (p *Plan) Say(events ...Event) { p.Events = append(p.Events, events...) }

// RecheckAt keeps the earliest of the times asked for.
func (p *Plan) RecheckAt(t time.Time) {
	if !t.IsZero() && (p.Recheck.IsZero() || t.Before(p.Recheck)) {
		p.Recheck = t
	}
}

// Updating returns an Update or UpdateStatus of an object, conditioned on the version seen.
func Updating(verb Verb, seen, want Object, events ...Event) Change {
	return Change{Verb: verb, Object: want, UID: seen.GetUID(), ResourceVersion: seen.GetResourceVersion(), Events: events}
}

// Disrupted is the DisruptionTarget condition of a pod that is ended for a reason of the cluster's.
// https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
func Disrupted(reason, message string, now time.Time) *corev1.PodCondition {
	return &corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now),
	}
}
