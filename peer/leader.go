package peer

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/placement"
	"shoal/placement/endpoints"
	"shoal/placement/repair"
	"shoal/placement/workload"
)

// leader takes the decisions of one data shard for as long as this peer leads it. It keeps a view of the shard's own objects and of all
// nodes, lets the pure planners of placement say what shall change, and commits each plan as one transaction. It owns no state that
// matters: a new leader elsewhere builds the same view from its own replica and goes on.
//
// One turn at a time: plan, claim room, commit, and wait until the view has seen what was committed. So no decision is ever taken twice
// from the same picture, without any expectation of what is still under way.
type leader struct {
	shard  uint64
	host   *consensus.Host
	commit committer
	rooms  rooms
	events record.EventRecorder
	repair repair.Options
	log    *slog.Logger

	queue *queue
	view  *placement.View
	due   map[placement.Ref]time.Time
	// waiting says that pods without a node should be looked at again.
	waiting bool
	// held are the zones whose evictions are held back.
	held map[string]bool
	// closed are the nodes that have refused a claim a moment ago.
	closed map[string]closedNode
	// told is, per waiting pod, the last reason given for having no node.
	told map[podKey]string
}

// committer writes the changes of one plan as one transaction and returns the revision at which all of them are visible.
type committer interface {
	Commit(ctx context.Context, changes []placement.Change) (store.Revision, error)
}

// evictionRef stands for the eviction of pods in leader.due: it is no object, but it wants to be asked again like one.
var evictionRef = placement.Ref{Kind: "Eviction"}

// retryPlan is when a plan that could not be committed is made anew, if nothing wakes the leader before.
const retryPlan = time.Second

// parallelPlans bounds the transactions of one turn that are under way at once.
const parallelPlans = 32

// Run leads until ctx ends.
func (l *leader) Run(ctx context.Context) error {
	l.queue, l.view = newQueue(), placement.NewView()
	l.due, l.told, l.closed = map[placement.Ref]time.Time{evictionRef: {}}, map[podKey]string{}, map[string]closedNode{}
	group, ctx := errgroup.WithContext(ctx)
	for _, shard := range []uint64{l.shard, consensus.MetaShard} {
		f := &feed{host: l.host, shard: shard, prefix: registry, want: decided, log: l.log, apply: l.queue.from(shard, registry)}
		group.Go(func() error { return f.Run(ctx) })
	}
	group.Go(func() error { return l.loop(ctx) })
	return group.Wait()
}

// decided tells whether a key holds a kind that decisions read.
func decided(key string) bool {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(key, registry), "/")
	switch kind {
	case "pods", "minions", "namespaces", "deployments", "replicasets", "controllers", "statefulsets", "daemonsets", "jobs", "cronjobs",
		"controllerrevisions", "endpointslices", "priorityclasses", "storageclasses", "persistentvolumes", "persistentvolumeclaims", "poddisruptionbudgets":
		return true
	case "services":
		return strings.HasPrefix(rest, "specs/") || strings.HasPrefix(rest, "endpoints/")
	}
	return false
}

func (l *leader) loop(ctx context.Context) error {
	for {
		timer := time.NewTimer(l.nextDue(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-l.queue.wake:
		case <-timer.C:
		}
		timer.Stop()
		if !l.queue.has(l.shard, registry) || !l.queue.has(consensus.MetaShard, registry) {
			continue
		}
		l.turn(ctx)
	}
}

// turn takes every decision that is due, once.
func (l *leader) turn(ctx context.Context) {
	now := time.Now()
	l.reopen(now)
	l.absorb()
	work := l.plan(l.takeDue(now), now)
	work = append(work, l.place(ctx, work, now)...)
	if len(work) == 0 {
		return
	}
	l.await(ctx, l.apply(ctx, work))
}

// absorb brings the view up to what the feeds have delivered.
func (l *leader) absorb() {
	for _, c := range l.queue.take() {
		if !c.Gone {
			l.view.Upsert(c.Object)
			continue
		}
		l.view.Delete(c.Object)
		if pod, ok := c.Object.(*corev1.Pod); ok {
			delete(l.told, keyOf(pod))
		}
	}
	for _, ref := range l.view.TakeDirty() {
		l.due[ref] = time.Time{}
	}
}

func (l *leader) takeDue(now time.Time) []placement.Ref {
	var refs []placement.Ref
	for ref, at := range l.due {
		if !at.After(now) {
			refs = append(refs, ref)
			delete(l.due, ref)
		}
	}
	return refs
}

func (l *leader) nextDue(now time.Time) time.Duration {
	wait := time.Hour
	for _, at := range l.due {
		wait = min(wait, max(0, at.Sub(now)))
	}
	for _, node := range l.closed {
		wait = min(wait, max(0, node.until.Sub(now)))
	}
	return wait
}

func (l *leader) recheck(ref placement.Ref, at time.Time) {
	if at.IsZero() {
		return
	}
	if have, ok := l.due[ref]; !ok || at.Before(have) {
		l.due[ref] = at
	}
}

// piece is one plan, and what it was made for.
type piece struct {
	ref  placement.Ref
	plan placement.Plan
}

func (l *leader) plan(refs []placement.Ref, now time.Time) []piece {
	var work []piece
	evict := false
	for _, ref := range refs {
		var plan placement.Plan
		switch ref.Kind {
		case placement.KindService:
			plan = endpoints.Plan(l.view, ref.NamespacedName, now)
		case placement.KindNode:
			evict, l.waiting = true, true
		case evictionRef.Kind:
			evict = true
		case placement.KindPod:
			l.waiting = true
		default:
			if l.terminating(ref.Namespace) {
				continue // nothing may be created there any more, and what there is goes with it
			}
			plan = workload.Plan(l.view, ref, now)
		}
		l.recheck(ref, plan.Recheck)
		if len(plan.Changes) > 0 {
			work = append(work, piece{ref, plan})
		}
	}
	if evict {
		work = append(work, l.evict(now)...)
	}
	return work
}

// tellBrakes says once that evictions in a zone are held back, and once that they go on.
func (l *leader) tellBrakes(brakes []repair.Brake) {
	held := map[string]bool{}
	for _, brake := range brakes {
		held[brake.Zone] = true
		if !l.held[brake.Zone] {
			l.log.Warn("evictions are held back", "zone", brake.Zone, "lost", brake.Lost, "nodes", brake.Nodes, "reason", brake.Reason)
		}
	}
	for zone := range l.held {
		if !held[zone] {
			l.log.Info("evictions go on", "zone", zone)
		}
	}
	l.held = held
}

func (l *leader) terminating(namespace string) bool {
	ns, known := l.view.Namespaces.Get("", namespace)
	return known && ns.DeletionTimestamp != nil
}

// evict makes one plan of each deletion, so that one pod that changed meanwhile does not hold back the others.
func (l *leader) evict(now time.Time) []piece {
	evictions := repair.PlanEvictions(l.view, l.repair, now)
	l.tellBrakes(evictions.Brakes)
	l.recheck(evictionRef, evictions.Recheck)
	work := make([]piece, 0, len(evictions.Changes))
	for _, change := range evictions.Changes {
		work = append(work, piece{evictionRef, placement.Plan{Changes: []placement.Change{change}}})
	}
	return work
}

// apply commits every plan as a transaction of its own and returns the highest revision.
func (l *leader) apply(ctx context.Context, work []piece) store.Revision {
	type outcome struct {
		at  store.Revision
		err error
	}
	outcomes := make([]outcome, len(work))
	var group errgroup.Group
	group.SetLimit(parallelPlans)
	for i, piece := range work {
		group.Go(func() error {
			outcomes[i].at, outcomes[i].err = l.commit.Commit(ctx, piece.plan.Changes)
			return nil
		})
	}
	_ = group.Wait() // every outcome is looked at below
	var last store.Revision
	for i, piece := range work {
		last = max(last, outcomes[i].at)
		l.settle(ctx, piece, outcomes[i].err)
	}
	return last
}

// settle does what follows from a commit: events when it holds, another try when it does not.
func (l *leader) settle(ctx context.Context, done piece, err error) {
	if err == nil {
		l.blame(done, nil)
		for _, change := range done.plan.Changes {
			for _, event := range change.Events {
				l.events.Event(event.Regarding, event.Type, event.Reason, event.Message)
			}
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	l.recheck(done.ref, time.Now().Add(retryPlan))
	if stale(err) {
		// Somebody else wrote first. What he wrote is on its way into the view.
		l.log.Debug("a decision was overtaken and is taken anew", "for", done.ref, "error", err)
		return
	}
	l.log.Warn("a decision could not be committed", "for", fmt.Sprintf("%s %s", done.ref.Kind, done.ref.NamespacedName), "error", err)
	l.blame(done, err)
}

// blame tells the owner of refused pods why they do not come, so that its condition can say so, and with nil that they do.
func (l *leader) blame(done piece, err error) {
	for _, change := range done.plan.Changes {
		pod, ok := change.Object.(*corev1.Pod)
		if !ok || change.Verb != placement.Create || len(pod.OwnerReferences) == 0 {
			continue
		}
		message := ""
		if err != nil {
			message = err.Error()
		}
		l.view.SetFailure(pod.OwnerReferences[0].UID, message)
		return
	}
}

// await waits until the view's feed has reached a revision that this leader committed, for at most a second: if its own replica lags
// that far behind, decisions taken meanwhile fail on their preconditions instead of being wrong.
func (l *leader) await(ctx context.Context, revision store.Revision) {
	deadline := time.NewTimer(time.Second)
	defer deadline.Stop()
	for l.queue.reached(l.shard, registry) < revision {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-l.queue.wake:
		}
	}
	l.queue.poke()
}
