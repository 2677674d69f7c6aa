package model

import (
	"slices"
	"time"

	"shoal/consensus/merge"
	"shoal/consensus/store"
	"shoal/sim/history"
)

// overseer is a user's program that follows all clients' keys, as a controller follows all namespaces: it lists them at one revision, watches
// from there on, and moves from peer to peer. consensus/merge is production's; what reads the shards and closes them is told again here,
// after peer/api/storage/stream.go.
type overseer struct {
	model *Model
	id    int
	at    *node // the peer that it talks to
	life  int   // of that peer
	until time.Duration
	turn  int // what an earlier turn has asked for is void

	open   *history.Watch
	begun  bool
	pos    store.Revision // everything up to it was delivered
	told   store.Revision // by the last bookmark
	lanes  []lane
	merger *merge.Merger
}

// lane is a watch of one shard, through one copy after the other.
type lane struct {
	shard   *shard
	from    *replica
	life    int // of the copy's peer
	pos     store.Revision
	closing bool
	agreed  store.Revision // up to which the shard has said that it is closed
}

// Pace of an overseer; closeInterval and closeRetry are those of peer/api/storage/stream.go.
const (
	overseerMoves = 15 * time.Second
	closeInterval = 10 * time.Millisecond
	closeRetry    = 200 * time.Millisecond
	batchEvents   = 1000
	batchBytes    = 1 << 20
)

// look delivers what is new.
func (o *overseer) look() {
	m := o.model
	if len(m.checks.clients.history.Operations) < mostRecorded {
		m.after(watchPoll, "watch all", o.look)
	}
	if o.at != nil && (!o.at.active() || o.at.life != o.life || m.now >= o.until) {
		o.leave("", "")
	}
	if o.at == nil && !o.move() || o.open == nil {
		return
	}
	for i := range o.lanes {
		if err := o.follow(i); err != nil {
			o.leave(history.Expired, err.Error())
			o.begun = false
			return
		}
	}
	for _, e := range o.merger.Release(batchEvents, batchBytes) {
		if m.cfg.bug == bugBoundarySkipped && o.pos.Shard() != e.Revision.Shard() && m.chance.IntN(10) == 0 {
			o.pos = e.Revision
			continue
		}
		o.pos = e.Revision
		o.open.Events = append(o.open.Events, changeEvent(m.now, e))
	}
	marks := m.chance.IntN(8) == 0
	o.close(marks)
	if at := o.merger.Frontier(); marks && at > max(o.told, o.pos) && !o.cuts(at) {
		o.pos, o.told = at, at
		o.open.Events = append(o.open.Events, history.Event{Kind: history.Bookmark, At: m.now, Object: history.Object{Revision: int64(at)}})
	}
}

// move takes another peer, and goes on there: mostly after what was delivered last, at times from the beginning, as a program does that
// has lost what it knew.
func (o *overseer) move() bool {
	m := o.model
	n := m.nodes[m.chance.IntN(len(m.nodes))]
	if !n.active() {
		return false
	}
	o.turn++
	o.at, o.life, o.until = n, n.life, m.now+m.between(overseerMoves/2, overseerMoves*3/2)
	if o.begun && m.chance.IntN(3) != 0 {
		o.watch(m.now, int64(o.pos))
		return true
	}
	turn, asked := o.turn, m.now
	m.snapshot(n, func(items []store.KV, rev store.Revision, ok bool) {
		switch {
		case o.turn != turn:
		case !ok:
			o.leave("", "")
		default:
			o.pos, o.told, o.begun = rev, rev, true
			o.watch(asked, 0)
			for _, kv := range items {
				o.open.Events = append(o.open.Events, history.Event{Kind: history.Initial, At: m.now, Object: object(kv)})
			}
			o.open.Events = append(o.open.Events, history.Event{Kind: history.InitialEnd, At: m.now, Object: history.Object{Revision: int64(rev)}})
		}
	})
	return true
}

// watch opens a watch of all clients' shards at what was delivered last; after is what the record says it was asked for.
func (o *overseer) watch(asked time.Duration, after int64) {
	c := &o.model.checks.clients
	o.open = &history.Watch{ID: c.watches, Client: o.id, Peer: o.at.name, Key: clientPrefix, After: after, Invoke: asked, Opened: o.model.now}
	c.watches++
	shards := o.model.clientShards()
	numbers := make([]uint64, len(shards))
	o.lanes = make([]lane, len(shards))
	for i, s := range shards {
		numbers[i] = s.number
		o.lanes[i] = lane{shard: s, pos: max(merge.OnShard(s.number, o.pos), 1)}
	}
	o.merger = merge.New(numbers, o.pos)
}

// leave ends the watch and lets the peer go.
func (o *overseer) leave(failure history.Failure, why string) {
	if o.open != nil {
		o.open.Closed, o.open.Failure, o.open.Error = o.model.now, failure, why
		o.model.checks.clients.history.Watches = append(o.model.checks.clients.history.Watches, *o.open)
	}
	o.turn++
	o.at, o.open, o.lanes, o.merger = nil, nil, nil, nil
}

// follow takes in what is new in a shard: from the peer's own copy, or from another one that it reaches.
func (o *overseer) follow(i int) error {
	m, l := o.model, &o.lanes[i]
	if l.from == nil || l.from.gone || l.from.node.life != l.life || !m.reaches(o.at, l.from.node) {
		if l.from = l.shard.on(o.at); l.from == nil || l.from.applied == 0 {
			l.from = l.shard.anyCopy(m, o.at)
		}
		if l.from == nil {
			return nil
		}
		l.life = l.from.node.life
	}
	v := l.from.state.View()
	if v.Revision() <= l.pos {
		return nil // a copy that lags
	}
	events, through, err := v.Events(l.pos, clientPrefix, batchEvents, batchBytes)
	if err != nil {
		return err
	}
	l.pos = max(l.pos, through)
	o.merger.Push(i, append(events, store.Event{Progress: true, Revision: l.pos}))
	return nil
}

// close asks the shards that keep events waiting, or a bookmark, to pass them.
func (o *overseer) close(marks bool) {
	m, turn := o.model, o.turn
	upTo := o.merger.NewestWaiting()
	if marks {
		upTo = max(upTo, o.merger.Highest())
	}
	if upTo == 0 {
		return
	}
	for _, i := range o.merger.Behind(upTo) {
		l := &o.lanes[i]
		target := merge.CloseTarget(l.shard.number, upTo)
		if l.closing || l.agreed >= target || l.from != nil && l.from.state.View().Revision() >= target {
			continue
		}
		l.closing = true
		m.closeShard(o.at, l.shard, target, func(err error) {
			pause := closeInterval
			if err != nil {
				pause = closeRetry
			}
			m.after(pause, "closed", func() {
				if o.turn != turn {
					return
				}
				if l.closing = false; err == nil {
					l.agreed = max(l.agreed, target)
				}
			})
		})
	}
}

// cuts tells whether a revision lies inside of a transaction.
func (o *overseer) cuts(rev store.Revision) bool {
	return slices.ContainsFunc(o.lanes, func(l lane) bool { return l.from == nil || l.from.state.View().Whole(rev) > rev })
}
