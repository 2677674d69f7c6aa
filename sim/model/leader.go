package model

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
	"shoal/placement/turn"
	"shoal/runtime/pods"
)

// leader takes the turns of one data shard over simulated nodes and a simulated log, as peer/leader.go does over real ones: plan, claim
// room, commit, and only then look again.
type leader struct {
	model *Model
	shard *shard
	node  *node
	on    *replica
	feed  stream // of the meta shard
	state *turn.Leader
	stale bool // something of the meta shard was missed
	busy  bool // a turn is under way
	woken bool
	timer time.Time // when it will be woken in any case
}

// claimTimeout is that of peer/claims.go.
const claimTimeout = 2 * time.Second

// thinking is what planning takes; it keeps two turns apart.
const thinking = time.Millisecond

func newLeader(m *Model, r *replica) *leader {
	l := &leader{model: m, shard: r.shard, node: r.node, on: r}
	l.read()
	return l
}

// read makes the view anew: nodes first.
func (l *leader) read() {
	l.state, l.stale = turn.New(turn.Options{Repair: l.model.repair, Omit: l.omit}), false
	for _, s := range []*shard{l.model.shards[0], l.shard} {
		for _, key := range s.keys() {
			l.state.Learn(s.objects[key], false)
		}
	}
}

// omit plants the deliberate bugs that leave something undecided.
func (l *leader) omit(ref placement.Ref) bool {
	switch l.model.cfg.bug {
	case bugEndpointsKept:
		return ref.Kind == placement.KindService && slices.ContainsFunc(l.state.View().Nodes(), (*placement.Node).Lost)
	case bugNoEvictions:
		return ref == turn.EvictionRef
	}
	return false
}

// leads tells whether this is still the leader, as far as it knows.
func (l *leader) leads() bool { return l.on.turns == l && l.on.leads }

// miss notes that something of the meta shard was not heard. The connection is made anew after a while, and everything is read again.
func (l *leader) miss() {
	if l.stale {
		return
	}
	l.stale = true
	l.node.do(l.model.between(100*time.Millisecond, slowestFeed), "feed anew", func() {
		if l.leads() {
			l.wake()
		}
	})
}

func (l *leader) learn(before, now placement.Object, gone bool) {
	if gone {
		l.state.Learn(before, true)
	} else {
		l.state.Learn(now, false)
	}
	l.wake()
}

// wake asks for a turn.
func (l *leader) wake() {
	if l.busy || l.woken {
		return
	}
	l.woken = true
	l.node.do(thinking, "turn", func() {
		if l.leads() {
			l.woken = false
			l.turn()
		}
	})
}

// wakeAt asks for a turn at a time, unless an earlier one is asked for already.
func (l *leader) wakeAt(at time.Time) {
	now := l.node.wall()
	if at.IsZero() || l.timer.After(now) && !at.Before(l.timer) {
		return
	}
	l.timer = at
	l.node.do(max(at.Sub(now), 0), "timer", func() {
		if l.timer.Equal(at) {
			l.timer = time.Time{} // a clock that runs slow has not come to it yet, and it is over all the same
		}
		if l.leads() {
			l.wake()
		}
	})
}

// turn takes every decision that is due, once.
func (l *leader) turn() {
	if l.stale && l.model.shards[0].leaderFor(l.node) != nil {
		l.read()
	}
	t := l.state.Begin(l.node.wall())
	for _, brake := range t.Brakes {
		if !l.model.outcome.Braked[brake.Zone] {
			l.model.note("evictions are held back: %s", brake.Reason)
			l.model.emit(Event{Kind: EventBraked, Text: brake.Reason})
		}
		l.model.outcome.Braked[brake.Zone] = true
	}
	l.busy = true
	open := 2
	done := func() {
		if open--; open == 0 {
			l.commit(l.state.Finish(t, l.node.wall()), l.rest)
		}
	}
	l.commit(l.confirmed(t.Urgent()), done)
	l.claim(t, done)
}

// confirmed leaves out evictions from nodes that the store does not hold for lost, and from zones that are not as the leader knows them.
func (l *leader) confirmed(work []turn.Piece) []turn.Piece {
	if l.model.cfg.bug == bugEvictUnread {
		return work
	}
	accused := l.state.Accused(work)
	if len(accused) == 0 {
		return work
	}
	lost := map[string]bool{}
	for _, name := range accused {
		stands, known := l.model.standing(l.node, name)
		lost[name] = known && !stands
	}
	var news []*corev1.Node
	for _, known := range l.state.View().Nodes() {
		if stored, ok := l.model.shards[0].objects[kinds[0].prefix+known.Name].(*corev1.Node); ok && stored != known.Object {
			news = append(news, stored)
		}
	}
	return l.state.Confirmed(work, lost, news, l.node.wall())
}

// standing tells whether the store, read by a node through the meta shard's leader, has a node that is not lost; known is false where that
// leader cannot be asked.
func (m *Model) standing(by *node, name string) (stands, known bool) {
	meta := m.shards[0]
	if meta.leads == nil || !m.reaches(by, meta.leads.node) {
		return false, false
	}
	return !m.lostNode(name), true
}

// claim asks every chosen node, all at once, and goes on when all have answered or were waited for long enough.
func (l *leader) claim(t *turn.Turn, then func()) {
	byNode := t.Claims()
	open := len(byNode)
	if open == 0 {
		then()
		return
	}
	for _, name := range slices.Sorted(maps.Keys(byNode)) {
		claims := make([]pods.Claim, len(byNode[name]))
		for i, pod := range byNode[name] {
			claims[i] = pods.ClaimOf(pod)
		}
		l.model.ask(l.node, l.model.byName[name], l.shard, claims, func(answers []pods.Answer, usage placement.NodeUsage, err error) {
			if !l.leads() {
				return
			}
			l.takeAnswers(t, name, claims, answers, usage, err)
			if open--; open == 0 {
				then()
			}
		})
	}
}

func (l *leader) takeAnswers(t *turn.Turn, name string, claims []pods.Claim, answers []pods.Answer, usage placement.NodeUsage, err error) {
	if err != nil {
		l.model.note("shard %d: %s does not answer %d claims", l.shard.number, name, len(claims))
		l.state.Silent(t, name, l.node.wall())
		return
	}
	var refused []types.UID
	for i, answer := range answers {
		if !answer.Granted {
			l.model.outcome.Refused++
			l.model.note("shard %d: %s refuses %s/%s: %v", l.shard.number, name, claims[i].Namespace, claims[i].Name, answer.Reasons)
			refused = append(refused, answer.PodUID)
		}
	}
	if l.model.cfg.bug == bugEverythingFits {
		usage = placement.NodeUsage{Node: name}
	}
	l.state.Answered(t, usage, refused, l.node.wall())
}

// commit commits every plan, several small ones together. then is done when all have an answer.
func (l *leader) commit(work []turn.Piece, then func()) {
	if len(work) == 0 {
		then()
		return
	}
	batches := turn.Batches(work)
	open := len(batches)
	for _, batch := range batches {
		l.commitBatch(batch, func() {
			if open--; open == 0 {
				then()
			}
		})
	}
}

// commitBatch commits plans as one transaction; if anything speaks against one of them, each by itself.
func (l *leader) commitBatch(batch []turn.Piece, then func()) {
	var changes []placement.Change
	for _, piece := range batch {
		changes = append(changes, piece.Plan.Changes...)
	}
	l.model.propose(l.node, l.shard, changes, func(err error) {
		switch {
		case !l.leads():
			return
		case err == nil:
			for _, piece := range batch {
				l.state.Committed(piece)
			}
		case len(batch) > 1:
			open := len(batch)
			for i := range batch {
				l.commitBatch(batch[i:i+1], func() {
					if open--; open == 0 {
						then()
					}
				})
			}
			return
		default:
			l.model.note("shard %d: %s %s is overtaken: %s", l.shard.number, batch[0].Ref.Kind, batch[0].Ref.NamespacedName, err)
			l.state.Failed(batch[0], "", l.node.wall())
		}
		then()
	})
}

// rest ends a turn, and asks for the next one.
func (l *leader) rest() {
	l.busy = false
	if l.state.Dirty() {
		l.wake()
	}
	next := l.state.Next()
	if again := l.node.wall().Add(turn.RetryPlan); l.stale && (next.IsZero() || again.Before(next)) {
		next = again
	}
	l.wakeAt(next)
}
