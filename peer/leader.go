package peer

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/placement"
	"shoal/placement/repair"
	"shoal/placement/turn"
)

// leader takes the decisions of one data shard for as long as this peer leads it. It follows the shard's own objects and all nodes, asks the
// nodes that a turn has chosen for room, and commits each plan as one transaction. What is decided, is decided by placement/turn.
//
// One turn at a time: plan, claim room, commit, and wait until the view has seen what was committed. So no decision is ever taken twice
// from the same picture, without any expectation of what is still under way.
type leader struct {
	shard  uint64
	host   *consensus.Host
	commit committer
	rooms  rooms
	events events
	repair repair.Options
	log    *slog.Logger

	queue *queue
	state *turn.Leader
	asks  chan func() // done between two turns, see ask; nil takes none
	// held are the zones whose evictions are held back.
	held map[string]bool
}

// committer writes the changes of one plan as one transaction and returns the revision at which all of them are visible.
type committer interface {
	Commit(ctx context.Context, changes []placement.Change) (store.Revision, error)
}

// parallelPlans bounds the transactions of one turn that are under way at once.
const parallelPlans = 32

// Run leads until ctx ends.
func (l *leader) Run(ctx context.Context) error {
	l.queue, l.state = newQueue(), turn.New(turn.Options{Repair: l.repair, NodeProvisioner: nodeProvisioner})
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
		"controllerrevisions", "endpointslices", "priorityclasses", "storageclasses", "persistentvolumes", "persistentvolumeclaims",
		"poddisruptionbudgets", "csinodes", "csidrivers", "csistoragecapacities", "volumeattachments":
		return true
	case "services":
		return strings.HasPrefix(rest, "specs/") || strings.HasPrefix(rest, "endpoints/")
	}
	return false
}

func (l *leader) loop(ctx context.Context) error {
	for {
		// Before both lists are there nothing is due: only they can wake the loop.
		listed := l.queue.has(l.shard, registry) && l.queue.has(consensus.MetaShard, registry)
		var due <-chan time.Time
		if listed {
			due = time.After(l.untilNext(time.Now()))
		}
		select {
		case <-ctx.Done():
			return nil
		case ask := <-l.asks:
			ask()
			continue
		case <-l.queue.wake:
		case <-due:
		}
		if listed {
			l.turn(ctx)
		}
	}
}

func (l *leader) untilNext(now time.Time) time.Duration {
	next := l.state.Next()
	if next.IsZero() {
		return time.Hour
	}
	return max(0, next.Sub(now))
}

// turn takes every decision that is due, once.
func (l *leader) turn(ctx context.Context) {
	for _, c := range l.queue.take() {
		l.state.Learn(c.Object, c.Gone)
	}
	t := l.state.Begin(time.Now())
	if t.Judged {
		l.tellBrakes(t.Brakes)
	}
	for _, event := range t.Events {
		l.events.record(event)
	}
	urgent := l.confirmed(ctx, t.Urgent())
	committed := make(chan []outcome, 1)
	go func() { committed <- l.apply(ctx, urgent) }()
	l.claim(ctx, t)
	last := l.settleAll(ctx, urgent, <-committed)
	work := l.state.Finish(t, time.Now())
	if last = max(last, l.settleAll(ctx, work, l.apply(ctx, work))); last > 0 {
		l.await(ctx, l.shard, last)
	}
}

// confirmTimeout bounds the reading of nodes that evictions take for lost. It is part of takenFor: a node that is back waits that long for
// evictions that were decided before.
const confirmTimeout = 500 * time.Millisecond

// confirmed leaves out evictions from nodes that the store, read through its leader, does not hold for lost, or that cannot be read, and
// from zones that are not as this leader knew them.
func (l *leader) confirmed(ctx context.Context, work []turn.Piece) []turn.Piece {
	names := l.state.Accused(work)
	if len(names) == 0 {
		return work
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	lost, seen := make([]bool, len(names)), make([]store.Revision, len(names))
	var group errgroup.Group
	group.SetLimit(parallelPlans)
	for i, name := range names {
		group.Go(func() error {
			var err error
			if lost[i], seen[i], err = l.lost(ctx, name); err != nil {
				l.log.Info("whether a node is lost could not be read, its pods are not evicted yet", "node", name, "error", err)
			}
			return nil
		})
	}
	_ = group.Wait() // every error was told
	confirmed := map[string]bool{}
	if l.await(ctx, consensus.MetaShard, slices.Max(seen)) {
		for i, name := range names {
			confirmed[name] = lost[i]
		}
	}
	var news []*corev1.Node
	for _, c := range l.queue.untaken() {
		if node, ok := c.Object.(*corev1.Node); ok && !c.Gone {
			news = append(news, node)
		}
	}
	return l.state.Confirmed(work, confirmed, news, time.Now())
}

// lost reads whether a node is lost, or gone, and at which revision.
func (l *leader) lost(ctx context.Context, name string) (bool, store.Revision, error) {
	kv, found, at, err := l.host.Get(ctx, consensus.MetaShard, nodePrefix+name, consensus.Linearizable)
	if err != nil || !found {
		return err == nil, at, err
	}
	stored, err := decode(kv.Value, kv.Mod)
	if err != nil {
		return false, at, err
	}
	node, ok := stored.(*corev1.Node)
	return ok && (&placement.Node{Object: node}).Lost(), at, nil
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

// outcome is what became of one plan.
type outcome struct {
	at  store.Revision
	err error
}

// apply commits plans, several small ones together.
func (l *leader) apply(ctx context.Context, work []turn.Piece) []outcome {
	outcomes := make([]outcome, len(work))
	var group errgroup.Group
	group.SetLimit(parallelPlans)
	first := 0
	for _, batch := range turn.Batches(work) {
		of := outcomes[first : first+len(batch)]
		first += len(batch)
		group.Go(func() error {
			l.applyBatch(ctx, batch, of)
			return nil
		})
	}
	_ = group.Wait() // the outcomes tell
	return outcomes
}

// applyBatch commits plans as one transaction; if anything speaks against one of them, each by itself.
func (l *leader) applyBatch(ctx context.Context, work []turn.Piece, outcomes []outcome) {
	var changes []placement.Change
	for _, piece := range work {
		changes = append(changes, piece.Plan.Changes...)
	}
	at, err := l.commit.Commit(ctx, changes)
	if err == nil || len(work) == 1 {
		for i := range outcomes {
			outcomes[i] = outcome{at, err}
		}
		return
	}
	for i, piece := range work {
		outcomes[i].at, outcomes[i].err = l.commit.Commit(ctx, piece.Plan.Changes)
	}
}

// settleAll does what follows from every outcome, and returns the highest revision.
func (l *leader) settleAll(ctx context.Context, work []turn.Piece, outcomes []outcome) store.Revision {
	var last store.Revision
	for i, piece := range work {
		last = max(last, outcomes[i].at)
		l.settle(ctx, piece, outcomes[i].err)
	}
	return last
}

// settle does what follows from a commit: events when it holds, another try when it does not.
func (l *leader) settle(ctx context.Context, done turn.Piece, err error) {
	switch {
	case err == nil:
		l.state.Committed(done)
		for _, change := range done.Plan.Changes {
			for _, event := range change.Events {
				l.events.record(event)
			}
		}
	case ctx.Err() != nil:
	case stale(err):
		// Somebody else wrote first. What he wrote is on its way into the view.
		l.log.Debug("a decision was overtaken and is taken anew", "for", done.Ref, "error", err)
		l.state.Failed(done, "", time.Now())
	default:
		l.log.Warn("a decision could not be committed", "for", fmt.Sprintf("%s %s", done.Ref.Kind, done.Ref.NamespacedName), "error", err)
		for _, event := range l.state.Failed(done, err.Error(), time.Now()) {
			l.events.record(event)
		}
	}
}

// await waits until the view's feed of a shard has reached a revision, for at most a second, and tells whether it has. If the own replica lags
// that far behind what this leader has committed, decisions taken meanwhile fail on their preconditions instead of being wrong.
func (l *leader) await(ctx context.Context, shard uint64, revision store.Revision) bool {
	deadline := time.NewTimer(time.Second)
	defer deadline.Stop()
	// Whatever ends the waiting: what woke it is still to be taken.
	defer l.queue.poke()
	for l.queue.reached(shard, registry) < revision {
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			return false
		case <-l.queue.wake:
		}
	}
	return true
}
