// Package turn is what a data shard's leader decides, one turn at a time, as a state without a clock or a wire: which questions are due,
// what the planners of placement answer, which nodes are asked for room, and what follows from their answers and from commits.
//
// A turn has several steps, because nodes and the store answer in their own time. Begin plans everything that is due and chooses nodes;
// Urgent gives the plans that need no node's answer; Answered and Silent take in what the nodes said to the claims; Finish gives the other
// plans. Committed and Failed end each of them.
// package peer runs the steps over real nodes and a real store, sim/model over simulated ones.
//
// Nothing of a Leader matters beyond its turns: a new leader elsewhere builds the same view from its own replica and goes on.
package turn

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/endpoints"
	"shoal/placement/repair"
	"shoal/placement/schedule"
	"shoal/placement/workload"
)

// Times of a turn.
const (
	// RetryPlan is when a plan that could not be committed is made anew, if nothing wakes the leader before.
	RetryPlan = time.Second
	// RetryClaim is how long a pod waits after a refused claim.
	RetryClaim = 100 * time.Millisecond
	// AvoidRefusing is how long a node that has refused a claim gets no pods, whatever it reports. Its reasons need not be ones that
	// the view can see, and deciding for the same node again and again would starve pods for which others have room.
	AvoidRefusing = time.Second
	// RestPerPod is how long an object rests after it was planned, for each pod that the plan looks at, and MaxRest how long at most. A plan
	// costs as much as there are pods, and what it writes (a status, Endpoints) often too: without rest a rollout, in which every pod asks
	// for a plan several times, would cost their square. An object of ten pods rests for as long as a commit takes.
	RestPerPod = 100 * time.Microsecond
	MaxRest    = 100 * time.Millisecond
)

// Options of a Leader.
type Options struct {
	Repair repair.Options
	// NodeProvisioner is the name under which nodes make volumes themselves, for pods that are bound to them already.
	NodeProvisioner string
	// Workload plans workload objects; nil is workload.Plan.
	Workload func(v *placement.View, ref placement.Ref, now time.Time) placement.Plan
	// Omit names questions that are not answered; nil is none. Only the simulation sets it, for its deliberate bugs.
	Omit func(placement.Ref) bool
}

// EvictionRef stands for the eviction of pods among the questions: it is no object, but it wants to be asked again like one.
var EvictionRef = placement.Ref{Kind: "Eviction"}

// Leader is the state of one shard's leader. It has one owner.
type Leader struct {
	options Options
	view    *placement.View
	due     *agenda
	// resting says until when an object that was planned a moment ago is not planned again.
	resting map[placement.Ref]time.Time
	// waiting says that pods without a node should be looked at again, asked are those that the round under way has looked at; nil without
	// one. See nextWaiting.
	waiting bool
	asked   map[types.NamespacedName]bool
	// closed are the nodes that are avoided, and until when: they have refused a claim a moment ago, or leave claims unanswered.
	closed map[string]time.Time
	// silences is how often in a row nodes have not answered claims; it is forgotten with the node.
	silences map[string]int
	// told is, per waiting pod, the last reason given for having no node.
	told map[types.NamespacedName]string
	// reports are those of nodes that run pods of other shards.
	reports map[string]report
	// said are, per question, the events of its last plan that came without a change.
	said map[placement.Ref][]placement.Event
	// losses is what this leader has seen of lost nodes.
	losses *repair.Losses
}

// Piece is one plan, which commits as one transaction, and what it was made for.
type Piece struct {
	Ref  placement.Ref
	Plan placement.Plan
}

// Turn is one turn under way.
type Turn struct {
	// Brakes are the zones whose evictions are held back. Judged tells whether they were looked at in this turn.
	Brakes []repair.Brake
	Judged bool
	// Events are to be recorded whatever becomes of the plans.
	Events []placement.Event

	pieces    []Piece
	decisions []schedule.Decision
	refused   map[types.UID]bool
	refresh   []string                        // nodes whose report is old
	volumes   map[types.NamespacedName]string // claims whose volumes are to be made, and on which node
}

// New returns a leader with an empty view. Let it learn everything, nodes first, before its first turn.
func New(o Options) *Leader {
	if o.Workload == nil {
		o.Workload = workload.Plan
	}
	due := newAgenda()
	due.add(EvictionRef, time.Time{})
	return &Leader{
		options: o, view: placement.NewView(), due: due, resting: map[placement.Ref]time.Time{},
		closed: map[string]time.Time{}, silences: map[string]int{}, told: map[types.NamespacedName]string{}, reports: map[string]report{},
		said: map[placement.Ref][]placement.Event{}, losses: repair.NewLosses(),
	}
}

// View is what the leader knows. Only the leader changes it.
func (l *Leader) View() *placement.View { return l.view }

// Learn takes in an object as it is now, or that it is gone.
func (l *Leader) Learn(object placement.Object, gone bool) {
	if !gone {
		l.view.Upsert(object)
		return
	}
	l.view.Delete(object)
	switch object := object.(type) {
	case *corev1.Pod:
		delete(l.told, keyOf(object))
	case *corev1.Node:
		delete(l.silences, object.Name)
	}
}

// Begin plans everything that is due at now, and chooses nodes for the pods that wait and for those that the plans create. How long nodes
// have been lost is measured between these moments: they should carry a clock that nobody sets, as time.Now's do.
func (l *Leader) Begin(now time.Time) *Turn {
	l.reopen(now)
	l.collectDirty()
	t := &Turn{refused: map[types.UID]bool{}}
	l.plan(t, l.due.take(now), now)
	l.decide(t, now)
	return t
}

// Urgent are the plans to commit before any node has answered: those that create no pod. A node that does not answer takes its time, and what
// was seen of others, evictions above all, must not be acted upon so much later.
func (t *Turn) Urgent() []Piece {
	var urgent, rest []Piece
	for _, piece := range t.pieces {
		if createsPods(piece) {
			rest = append(rest, piece)
		} else {
			urgent = append(urgent, piece)
		}
	}
	t.pieces = rest
	return urgent
}

func createsPods(piece Piece) bool {
	return slices.ContainsFunc(piece.Plan.Changes, func(change placement.Change) bool {
		_, isPod := change.Object.(*corev1.Pod)
		return isPod && change.Verb == placement.Create
	})
}

// Dirty tells whether something that was learnt asks for a turn.
func (l *Leader) Dirty() bool {
	l.collectDirty()
	at, ok := l.due.first()
	return ok && at.IsZero()
}

func (l *Leader) collectDirty() {
	for _, ref := range l.view.TakeDirty() {
		l.due.add(ref, l.resting[ref]) // zero is now
	}
}

// Next is when the leader wants a turn even if nothing happens; zero for never. A time in the past means now.
func (l *Leader) Next() time.Time {
	next, ok := l.due.first()
	if ok && next.IsZero() {
		next = time.Unix(0, 0)
	}
	for _, until := range l.closed {
		if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	return next
}

func (l *Leader) recheck(ref placement.Ref, at time.Time) {
	if !at.IsZero() {
		l.due.add(ref, at)
	}
}

func (l *Leader) plan(t *Turn, refs []placement.Ref, now time.Time) {
	evict := false
	for _, ref := range refs {
		if l.options.Omit != nil && l.options.Omit(ref) {
			continue
		}
		var plan placement.Plan
		switch ref.Kind {
		case placement.KindService:
			plan = endpoints.Plan(l.view, ref.NamespacedName, now)
		case placement.KindNode:
			evict, l.waiting = true, true
		case EvictionRef.Kind:
			evict = true
		case placement.KindPod, placement.KindVolume:
			l.waiting = true
		case roundRef.Kind: // decide goes on by itself
		case usageRef.Kind:
			l.chooseRefresh(t, now)
		default:
			plan = l.options.Workload(l.view, ref, now)
			if l.terminating(ref.Namespace) {
				plan = leaving(plan)
			}
		}
		l.recheck(ref, plan.Recheck)
		l.rest(ref, now)
		l.say(t, ref, plan.Events)
		if len(plan.Changes) > 0 {
			t.pieces = append(t.pieces, Piece{ref, plan})
		}
	}
	if evict && (l.options.Omit == nil || !l.options.Omit(EvictionRef)) {
		l.evict(t, now)
	}
}

// rest keeps an object that was planned at now from being planned again at once.
func (l *Leader) rest(ref placement.Ref, now time.Time) {
	if rest := min(time.Duration(l.view.Weight(ref))*RestPerPod, MaxRest); rest > 0 {
		l.resting[ref] = now.Add(rest)
	} else {
		delete(l.resting, ref)
	}
}

// say takes in events that come without a change. A question is answered again and again; what the last answer said already is not news.
func (l *Leader) say(t *Turn, ref placement.Ref, events []placement.Event) {
	before := l.said[ref]
	for _, event := range events {
		if !slices.ContainsFunc(before, func(old placement.Event) bool {
			return old.Regarding.GetUID() == event.Regarding.GetUID() && old.Reason == event.Reason && old.Message == event.Message
		}) {
			t.Events = append(t.Events, event)
		}
	}
	if len(events) > 0 {
		l.said[ref] = events
	} else {
		delete(l.said, ref)
	}
}

func (l *Leader) terminating(namespace string) bool {
	ns, known := l.view.Namespaces.Get("", namespace)
	return known && ns.DeletionTimestamp != nil
}

// leaving is what is left of a plan in a namespace that ends: nothing may be created there any more, and what there is goes with it. But
// what keeps pods there, a Job's finalizer, has still to be taken away.
func leaving(plan placement.Plan) placement.Plan {
	plan.Changes = slices.DeleteFunc(plan.Changes, func(c placement.Change) bool {
		_, isPod := c.Object.(*corev1.Pod)
		return !isPod || c.Verb == placement.Create
	})
	return plan
}

// evict makes one plan of what concerns one pod, so that one that changed meanwhile does not hold back the others.
func (l *Leader) evict(t *Turn, now time.Time) {
	evictions := repair.PlanEvictions(l.view, l.losses, l.options.Repair, now)
	t.Brakes, t.Judged = evictions.Brakes, true
	l.recheck(EvictionRef, evictions.Recheck)
	changes := evictions.Changes
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].UID == changes[0].UID {
			n++
		}
		t.pieces = append(t.pieces, Piece{EvictionRef, placement.Plan{Changes: changes[:n:n]}})
		changes = changes[n:]
	}
}

// Committed ends a piece: its events are the caller's to record.
func (l *Leader) Committed(done Piece) {
	for owner, pods := range created(done) {
		l.view.Accept(owner, pods)
	}
}

// Failed ends a piece that could not be committed at now. refusal is why, if somebody refused it; "" if the picture was old. It returns
// events to record: the owners of refused pods say why these do not come.
func (l *Leader) Failed(done Piece, refusal string, now time.Time) []placement.Event {
	l.recheck(done.Ref, now.Add(RetryPlan))
	if done.Ref.Kind == placement.KindPod {
		delete(l.told, done.Ref.NamespacedName) // it has not been said
	}
	if refusal == "" {
		return nil
	}
	pods := created(done)
	for owner, n := range pods {
		// An owner that is made by the same plan did not come to be either: it is its own owner that has to try fewer.
		for _, change := range done.Plan.Changes {
			if ref := metav1.GetControllerOfNoCopy(change.Object); ref != nil && change.Verb == placement.Create && change.Object.GetUID() == owner {
				owner = ref.UID
				break
			}
		}
		l.view.Refuse(owner, n, refusal, now)
	}
	var events []placement.Event
	for _, change := range done.Plan.Changes {
		ref := metav1.GetControllerOfNoCopy(change.Object)
		if ref == nil || pods[ref.UID] == 0 || len(change.Events) == 0 {
			continue
		}
		if _, isPod := change.Object.(*corev1.Pod); isPod && change.Verb == placement.Create {
			event := change.Events[0]
			event.Type, event.Reason, event.Message = corev1.EventTypeWarning, "FailedCreate", "Error creating: "+refusal
			events = append(events, event)
			delete(pods, ref.UID)
		}
	}
	return events
}

// created counts the pods that a plan creates, by their controllers.
func created(done Piece) map[types.UID]int {
	pods := map[types.UID]int{}
	for _, change := range done.Plan.Changes {
		if _, isPod := change.Object.(*corev1.Pod); isPod && change.Verb == placement.Create {
			if ref := metav1.GetControllerOfNoCopy(change.Object); ref != nil {
				pods[ref.UID]++
			}
		}
	}
	return pods
}
