package pods

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// PodState is what is actually there for one pod: the input of Plan beside the pod itself. Plan does not change it.
type PodState struct {
	// Bound is false while the node has only granted a claim (D6): everything but volumes and containers is then prepared.
	Bound bool
	// Removed says that the object no longer exists or belongs to another node: end it without a final delete.
	Removed bool
	// Fenced stops the containers, with FenceGrace, and starts none, until it is false again (D8).
	Fenced     bool
	FenceGrace time.Duration
	// Held starts no container until it is false again; what runs goes on.
	Held bool

	HostIPs    []netip.Addr
	Sandbox    *Sandbox         // nil: none
	IPs        []netip.Addr     // of the pod network; nil: not attached
	Volumes    bool             // prepared in this life of the agent
	Containers []ContainerState // all that exist of this pod
	Messages   map[string]string
	// Images holds what is known to be on the node, by the reference in the spec.
	Images map[string]ImageFact
	// Probes holds results by container ID.
	Probes map[string]ProbeResults
	// Hooked holds the IDs of containers whose postStart hook is over (or that have none).
	Hooked map[string]bool
	// InFlight holds actions that were started and have not ended.
	InFlight map[Key]bool
	// Failures holds the last failure of actions that did not succeed since.
	Failures map[Key]Failure
	// Evicted is why the pod must end though nobody deleted it.
	Evicted *End
	// TornDown says that sandbox, network and volumes are gone and nothing will come back.
	TornDown bool
	// Deleted says that the final delete was written.
	Deleted bool

	Record Record
}

// ImageFact is an image seen on the node at a moment.
type ImageFact struct {
	Image Image
	At    time.Time
	// Pulled tells a pull from a look at what is there: pull policy Always asks for one before each start.
	Pulled bool
}

// Failure of an action.
type Failure struct {
	Reason, Message string // as a waiting container shows it
	At              time.Time
	Count           int // in a row, from 1
}

// Record is what Plan remembers from one call to the next. It is part of the checkpoint on disk, so that a restarted peer goes on.
type Record struct {
	// Status is the status computed last.
	Status corev1.PodStatus
	// Backoffs by container name.
	Backoffs map[string]Backoff
	// StopFrom is when the pod as a whole began to stop; its grace period counts from here.
	StopFrom time.Time
	// End is set when the pod was decided to be over whatever its containers say (deadline).
	End *End
	// BackoffNoted holds, by container name, the attempt whose back-off was reported in an event.
	BackoffNoted map[string]int
}

// End is a reason for which a pod fails as a whole.
type End struct{ Reason, Message string }

// Verb is what an Action does.
type Verb string

// The verbs of a plan. All are idempotent, and at most one of a Key is in flight.
const (
	CreateSandbox   Verb = "create-sandbox"
	AttachNetwork   Verb = "attach-network"
	PrepareVolumes  Verb = "prepare-volumes"
	InspectImage    Verb = "inspect-image"
	PullImage       Verb = "pull-image"
	StartContainer  Verb = "start-container"
	RunPostStart    Verb = "post-start"
	StopContainer   Verb = "stop-container"
	KillContainer   Verb = "kill-container"
	RemoveContainer Verb = "remove-container"
	Teardown        Verb = "teardown" // containers, sandbox, network, volumes
	DeletePod       Verb = "delete-pod"
)

// Key identifies an action: its verb and subject (image reference, container name, or container ID for stop and remove).
type Key struct {
	Verb    Verb
	Subject string
}

// Action is one thing to do now. The actions of one Decision are independent of each other and may run at the same time.
type Action struct {
	Key
	Container string        // name
	ID        string        // container ID: post-start, stop, remove
	Attempt   int           // start
	Grace     time.Duration // stop
	PreStop   bool          // stop: run the preStop hook first, within Grace
	Reason    string        // stop: for the Killing event
	Image     Image         // start
}

// ProbeTarget is a probe that should be running.
type ProbeTarget struct {
	Container   string
	ContainerID string
	Kind        ProbeKind
	StartedAt   time.Time
}

// Notice is an event to record.
type Notice struct{ FieldPath, Type, Reason, Message string }

// Decision is what Plan answers.
type Decision struct {
	Actions []Action
	Cancel  []Key // actions in flight that are of no use any more
	Probes  []ProbeTarget
	Notices []Notice
	Status  corev1.PodStatus
	// Wake is when to plan again though nothing happened; zero means never.
	Wake time.Time
	// Done says that nothing is left and nobody waits: the worker may end.
	Done   bool
	Record Record
}
