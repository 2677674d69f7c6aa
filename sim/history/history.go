// Package history holds what clients of a store did and saw, and judges it: pure checkers over a recorded history of concurrent reads,
// writes and watches.
//
// It knows neither raft nor Kubernetes, only keys, values and revisions, so the same checkers judge real processes under faults
// (cli/robustness) and simulated ones. What is promised to clients, and by whom it is checked:
//
//	linearizable   every object's linearizable reads and its writes have one order that agrees with real time (porcupine)
//	ordered, unique, reliable, atomic, resumable, bookmarkable
//	               etcd's guarantees for watches (https://etcd.io/docs/v3.6/learning/api_guarantees/)
//	reads          reads at other consistencies, and lists, show a state that existed, and none older than they were asked for
//	monotonic      no client sees a revision go back, whichever peer it asks
//	durable        what was acknowledged is there at the end
package history

import "time"

// Kind is what an operation does.
type Kind string

// The kinds of operations. An update or a deletion with a Precondition is guarded.
const (
	Get    Kind = "get"
	List   Kind = "list"
	Create Kind = "create"
	Update Kind = "update"
	Delete Kind = "delete"
)

// Consistency is how fresh a read was asked to be.
type Consistency string

const (
	// Linearizable reads show every write that was acknowledged before they began: resourceVersion "".
	Linearizable Consistency = ""
	// Any reads show some state that existed: resourceVersion "0".
	Any Consistency = "any"
	// NotOlder reads show a state at Revision or later.
	NotOlder Consistency = "not-older"
	// Exact reads show the state at Revision.
	Exact Consistency = "exact"
)

// Outcome is what a client knows after an operation.
type Outcome string

const (
	// OK says that the operation was acknowledged.
	OK Outcome = "ok"
	// Failed says that it was refused and had no effect; Failure says why.
	Failed Outcome = "failed"
	// Unknown says that a write may have taken effect, or may still do so, or never will. Of a read it says that there was no answer.
	Unknown Outcome = "unknown"
)

// Failure is why an operation had no effect, as far as that says something about the store's state.
type Failure string

const (
	// Exists refuses to create an object that is there.
	Exists Failure = "exists"
	// Absent refuses to change an object that is not there.
	Absent Failure = "absent"
	// Conflict says that the precondition did not hold.
	Conflict Failure = "conflict"
	// Expired says that a revision is older than the history.
	Expired Failure = "expired"
	// Refused says nothing about the state: no quorum, no connection, too many requests.
	Refused Failure = "refused"
)

// Object is one version of an object.
type Object struct {
	Key string `json:"key"`
	// UID tells an object from a later one of the same key. It may be empty if the store has none.
	UID   string `json:"uid,omitempty"`
	Value string `json:"value"`
	// Revision is that of the object's last change.
	Revision int64 `json:"revision"`
}

// Operation is one request of a client and its answer.
type Operation struct {
	ID     int    `json:"id"`
	Client int    `json:"client"`
	Peer   string `json:"peer,omitempty"` // who was asked
	Kind   Kind   `json:"kind"`
	// Key is the object's; of a list the prefix of the keys that it lists.
	Key string `json:"key"`
	// Invoke and Return are times since the recording began, on one clock.
	Invoke time.Duration `json:"invoke"`
	Return time.Duration `json:"return"`

	// Consistency and Revision are what a read asked for.
	Consistency Consistency `json:"consistency,omitempty"`
	Revision    int64       `json:"revision,omitempty"`
	// Precondition is the revision that a guarded write demands, 0 for none.
	Precondition int64 `json:"precondition,omitempty"`
	// Value is what a create or update writes. Values of all writes of a history differ.
	Value string `json:"value,omitempty"`
	// Final marks the reads at the very end, after all faults and all other operations.
	Final bool `json:"final,omitempty"`

	Outcome Outcome `json:"outcome"`
	Failure Failure `json:"failure,omitempty"`
	Error   string  `json:"error,omitempty"`
	// Object is what a get found, nil for nothing, or what a create or update made.
	Object *Object `json:"object,omitempty"`
	// Deleted is the UID of what a deletion removed, if the store said so.
	Deleted string `json:"deleted,omitempty"`
	// Items and ListRevision are a list's answer.
	Items        []Object `json:"items,omitempty"`
	ListRevision int64    `json:"listRevision,omitempty"`
}

func (o *Operation) writes() bool { return o.Kind == Create || o.Kind == Update || o.Kind == Delete }

// EventKind is the kind of a watch's event.
type EventKind string

const (
	// Initial is an object that was there when a watch with initial state began.
	Initial EventKind = "initial"
	// InitialEnd ends the initial state, and names its revision.
	InitialEnd EventKind = "initial-end"
	// Added is a creation. Of it and of the other two changes the Object's revision is the change's.
	Added EventKind = "added"
	// Modified is a change of an object that stays.
	Modified EventKind = "modified"
	// Deleted is a deletion; its Value is not compared.
	Deleted EventKind = "deleted"
	// Bookmark says that every change up to its revision was delivered.
	Bookmark EventKind = "bookmark"
	// Error ends a watch: Event.Error says why.
	Error EventKind = "error"
)

// Event is something that a watch delivered.
type Event struct {
	Kind   EventKind     `json:"kind"`
	At     time.Duration `json:"at"`
	Object Object        `json:"object,omitzero"`
	Error  string        `json:"error,omitempty"`
}

func (e *Event) change() bool { return e.Kind == Added || e.Kind == Modified || e.Kind == Deleted }

// Watch is one watch from its opening to its end.
type Watch struct {
	ID     int    `json:"id"`
	Client int    `json:"client"`
	Peer   string `json:"peer,omitempty"`
	// Key is the prefix of the keys that it watches.
	Key string `json:"key"`
	// After is the revision whose later changes were asked for; 0 asks for the present objects first, and what changes from then on.
	After int64 `json:"after"`
	// Invoke is when it was asked for, Opened when that was answered (0 if it was not), Closed when it ended.
	Invoke time.Duration `json:"invoke"`
	Opened time.Duration `json:"opened,omitempty"`
	Closed time.Duration `json:"closed,omitempty"`
	// Failure is Expired if it ended because After or what followed was too old.
	Failure Failure `json:"failure,omitempty"`
	Error   string  `json:"error,omitempty"`
	Events  []Event `json:"events,omitempty"`
}

// Fault is something that was done to the cluster.
type Fault struct {
	Kind  string        `json:"kind"`
	What  string        `json:"what"` // in words, with whom it concerned
	Peers []string      `json:"peers,omitempty"`
	Begin time.Duration `json:"begin"`
	End   time.Duration `json:"end"`
	// Minority says that all shards keep a quorum that clients can reach.
	Minority bool `json:"minority,omitempty"`
}

// Meta says where a history comes from.
type Meta struct {
	Seed int64 `json:"seed"`
	// Note is anything that helps to make the run again.
	Note string `json:"note,omitempty"`
	// Began is the wall clock's time of the recording's beginning.
	Began time.Time `json:"began,omitzero"`
}

// History is a recording. The checkers do not change it.
type History struct {
	Meta       Meta
	Operations []Operation
	Watches    []Watch
	Faults     []Fault
	// Transactions are the revisions of changes that are known to have been one transaction, each ascending.
	Transactions [][]int64
}
