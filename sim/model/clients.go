package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"shoal/consensus/merge"
	"shoal/consensus/store"
	"shoal/sim/history"
)

// client is a user's program: it reads, writes and watches a few keys of its own kind through any peer, one operation at a time, and writes
// down what it asked and was told. sim/history judges that at the end.
type client struct {
	model *Model
	id    int
	at    *node // the peer that it talks to
	known map[string]history.Object
	seen  map[uint64]store.Revision // per shard, the highest revision that it was shown
	wrote int
}

// clientPrefix is where clients write; the shard's number follows.
const clientPrefix = "/clients/"

// Pace and patience of clients.
const (
	clientPause   = 700 * time.Millisecond
	clientTimeout = 6 * time.Second
	clientKeys    = 2 // per shard
	mostRecorded  = 4000
)

func clientKey(s *shard, i int) string { return fmt.Sprintf("%s%d/k%d", clientPrefix, s.number, i) }

func shardPrefix(s *shard) string { return fmt.Sprintf("%s%d/", clientPrefix, s.number) }

// begin notes an operation. Its outcome is unknown until end is called, which counts once.
func (c *client) begin(op history.Operation) (end func(func(*history.Operation))) {
	all := c.beginAll([]history.Operation{op})
	return func(fill func(*history.Operation)) { all(func(ops []history.Operation) { fill(&ops[0]) }) }
}

// beginAll is begin for what is asked for at once.
func (c *client) beginAll(ops []history.Operation) (end func(func([]history.Operation))) {
	m := c.model
	record := &m.checks.clients.history
	first := len(record.Operations)
	for i, op := range ops {
		op.ID, op.Client, op.Peer, op.Invoke, op.Return, op.Outcome = first+i, c.id, c.at.name, m.now, m.now, history.Unknown
		record.Operations = append(record.Operations, op)
	}
	over := false
	end = func(fill func([]history.Operation)) {
		if over {
			return
		}
		over = true
		begun := record.Operations[first : first+len(ops)]
		for i := range begun {
			begun[i].Return = m.now
		}
		fill(begun)
		c.next()
	}
	m.after(clientTimeout, "client gives up", func() { end(func([]history.Operation) {}) })
	return end
}

// next asks for the next operation.
func (c *client) next() {
	m := c.model
	if len(m.checks.clients.history.Operations) >= mostRecorded {
		return
	}
	m.after(m.between(clientPause/2, clientPause*3/2), "client", c.act)
}

// act does one operation.
func (c *client) act() {
	m := c.model
	if c.at == nil || !c.at.active() || m.chance.IntN(10) == 0 {
		c.at = m.nodes[m.chance.IntN(len(m.nodes))]
	}
	if !c.at.active() {
		c.next()
		return
	}
	shards := m.clientShards()
	s := shards[m.chance.IntN(len(shards))]
	key := clientKey(s, m.chance.IntN(clientKeys))
	switch known, exists := c.known[key]; {
	case m.chance.IntN(3) == 0:
		c.get(s, key, history.Linearizable)
	case m.chance.IntN(4) == 0:
		c.list(s, history.Linearizable)
	case m.chance.IntN(4) == 0:
		c.list(s, history.NotOlder)
	case m.chance.IntN(6) == 0:
		c.get(s, key, history.Any)
	case m.chance.IntN(6) == 0:
		c.listAll(history.Linearizable)
	case m.chance.IntN(6) == 0:
		c.listAll(history.NotOlder)
	case m.chance.IntN(5) == 0:
		c.writeAll(s)
	case !exists:
		c.write(s, history.Operation{Kind: history.Create, Key: key})
	case m.chance.IntN(8) == 0:
		c.write(s, history.Operation{Kind: history.Delete, Key: key, Precondition: known.Revision})
	default:
		c.write(s, history.Operation{Kind: history.Update, Key: key, Precondition: known.Revision})
	}
}

// write makes one guarded change.
func (c *client) write(s *shard, op history.Operation) {
	c.wrote++
	if op.Kind != history.Delete {
		op.Value = fmt.Sprintf("c%d-%d", c.id, c.wrote)
	}
	was := c.known[op.Key]
	end := c.begin(op)
	tx := store.Transaction{
		Conditions: []store.Condition{{Key: op.Key, Revision: store.Revision(op.Precondition)}},
		Ops:        []store.Op{{Key: op.Key, Value: []byte(op.Value), Delete: op.Kind == history.Delete}},
	}
	c.model.proposeTransaction(c.at, s, tx, nil, func(result store.Result, err error) {
		end(func(o *history.Operation) { c.heard(s, o, was.UID, 0, result, err) })
	})
}

// heard notes what came of a change, the n-th of its transaction, of an object that had a UID before.
func (c *client) heard(s *shard, o *history.Operation, uid string, n int, result store.Result, err error) {
	delete(c.known, o.Key)
	switch {
	case err == errUnknown:
		o.Error = err.Error()
	case err != nil:
		o.Outcome, o.Failure, o.Error = history.Failed, history.Refused, err.Error()
	case !result.OK:
		o.Outcome, o.Failure = history.Failed, c.refusal(*o, result)
	case o.Kind == history.Delete:
		o.Outcome, o.Deleted = history.OK, uid
	default:
		c.wroteObject(s, o, uid, result.Revisions[n])
	}
}

// writeAll makes guarded changes of all of a shard's keys in one transaction.
func (c *client) writeAll(s *shard) {
	var ops []history.Operation
	var tx store.Transaction
	for i := range clientKeys {
		c.wrote++
		op := history.Operation{Kind: history.Create, Key: clientKey(s, i), Value: fmt.Sprintf("c%d-%d", c.id, c.wrote)}
		if known, exists := c.known[op.Key]; exists {
			op.Kind, op.Precondition = history.Update, known.Revision
		}
		ops = append(ops, op)
		tx.Conditions = append(tx.Conditions, store.Condition{Key: op.Key, Revision: store.Revision(op.Precondition)})
		tx.Ops = append(tx.Ops, store.Op{Key: op.Key, Value: []byte(op.Value)})
	}
	known := maps.Clone(c.known)
	end := c.beginAll(ops)
	c.model.proposeTransaction(c.at, s, tx, nil, func(result store.Result, err error) {
		end(func(begun []history.Operation) {
			var revisions []int64
			for i := range begun {
				c.heard(s, &begun[i], known[begun[i].Key].UID, i, result, err)
				if begun[i].Outcome == history.OK {
					revisions = append(revisions, int64(result.Revisions[i]))
				}
			}
			if len(revisions) > 1 {
				record := &c.model.checks.clients.history
				record.Transactions = append(record.Transactions, revisions)
			}
		})
	})
}

// wroteObject notes what a creation or an update has made.
func (c *client) wroteObject(s *shard, o *history.Operation, uid string, revision store.Revision) {
	if o.Kind == history.Create {
		uid = revision.String()
	}
	o.Outcome, o.Object = history.OK, &history.Object{Key: o.Key, UID: uid, Value: o.Value, Revision: int64(revision)}
	c.known[o.Key] = *o.Object
	c.saw(s, revision)
}

// refusal is why a guarded write had no effect.
func (c *client) refusal(op history.Operation, result store.Result) history.Failure {
	at := slices.IndexFunc(result.Failed, func(kv store.KV) bool { return kv.Key == op.Key })
	if at < 0 {
		return history.Refused // another key's condition did not hold
	}
	now := result.Failed[at]
	if now.Mod != 0 {
		c.known[op.Key] = object(now)
	}
	switch {
	case op.Kind == history.Create:
		return history.Exists
	case now.Mod == 0:
		return history.Absent
	}
	return history.Conflict
}

func object(kv store.KV) history.Object {
	return history.Object{Key: kv.Key, UID: kv.Create.String(), Value: string(kv.Value), Revision: int64(kv.Mod)}
}

func (c *client) saw(s *shard, revision store.Revision) {
	c.seen[s.number] = max(c.seen[s.number], revision)
}

// get reads one object.
func (c *client) get(s *shard, key string, how history.Consistency) {
	end := c.begin(history.Operation{Kind: history.Get, Key: key, Consistency: how})
	c.read(s, how, 0, func(v store.View, failed bool) {
		end(func(o *history.Operation) {
			if failed {
				return
			}
			o.Outcome = history.OK
			delete(c.known, key)
			if kv, ok := v.Get(key); ok {
				found := object(kv)
				o.Object, c.known[key] = &found, found
			}
		})
	})
}

// list reads all objects of a shard.
func (c *client) list(s *shard, how history.Consistency) {
	op := history.Operation{Kind: history.List, Key: shardPrefix(s), Consistency: how}
	if how == history.NotOlder {
		op.Revision = int64(c.seen[s.number])
	}
	end := c.begin(op)
	c.read(s, how, store.Revision(op.Revision), func(v store.View, failed bool) {
		end(func(o *history.Operation) {
			if failed {
				return
			}
			o.Outcome, o.ListRevision = history.OK, int64(v.Revision())
			v.Ascend(op.Key, func(kv store.KV) bool {
				o.Items = append(o.Items, object(kv))
				return true
			})
			if how == history.NotOlder && v.Revision() < c.seen[s.number] {
				c.model.violate(checkerRevisions, "client %d was shown revision %s of shard %d after %s", c.id, v.Revision(), s.number, c.seen[s.number])
			}
			c.saw(s, v.Revision())
		})
	})
}

// listAll reads all clients' objects at one revision.
func (c *client) listAll(how history.Consistency) {
	var least store.Revision
	if how == history.NotOlder {
		for _, revision := range c.seen {
			least = max(least, revision)
		}
	}
	end := c.begin(history.Operation{Kind: history.List, Key: clientPrefix, Consistency: how, Revision: int64(least)})
	c.model.snapshot(c.at, func(items []store.KV, rev store.Revision, ok bool) {
		end(func(o *history.Operation) {
			if !ok {
				return
			}
			o.Outcome, o.ListRevision = history.OK, int64(rev)
			for _, kv := range items {
				o.Items = append(o.Items, object(kv))
			}
			if rev < least {
				c.model.violate(checkerRevisions, "client %d was shown all shards at revision %s after %s", c.id, rev, least)
			}
			for _, s := range c.model.clientShards() {
				c.saw(s, merge.OnShard(s.number, rev))
			}
		})
	})
}

// read gets a view of a shard in the name of the client's peer: from the leader, once it is sure that it leads, or from any copy that has
// reached a revision.
func (c *client) read(s *shard, how history.Consistency, least store.Revision, then func(v store.View, failed bool)) {
	m, at := c.model, c.at
	answer := func(r *replica) {
		v := r.state.View()
		m.send(r.node, at, "answer", func() {
			at.observe(v.Revision())
			then(v, false)
		})
	}
	if how == history.Linearizable {
		leader := s.leaderFor(at)
		if leader == nil {
			at.do(retryPropose, "no leader", func() { then(store.View{}, true) })
			return
		}
		m.send(at, leader.node, "read", func() { leader.confirm(func() { answer(leader) }) })
		return
	}
	r := s.anyCopy(m, at)
	if r == nil {
		at.do(retryPropose, "no copy", func() { then(store.View{}, true) })
		return
	}
	var try func(left int)
	try = func(left int) {
		switch {
		case r.gone:
		case r.state.View().Revision() >= least || m.cfg.bug == bugOldRevision:
			answer(r)
		case left == 0:
			m.send(r.node, at, "not reached", func() { then(store.View{}, true) })
		default:
			r.node.do(50*time.Millisecond, "wait for the revision", func() { try(left - 1) })
		}
	}
	m.send(at, r.node, "read", func() { try(40) })
}

// anyCopy draws one of the copies that a peer can ask.
func (s *shard) anyCopy(m *Model, at *node) *replica {
	var able []*replica
	for _, r := range s.replicas {
		if !r.gone && m.reaches(at, r.node) && r.applied > 0 {
			able = append(able, r)
		}
	}
	if len(able) == 0 {
		return nil
	}
	return able[m.chance.IntN(len(able))]
}

// watcher follows one shard through one copy after the other.
type watcher struct {
	model *Model
	id    int
	shard *shard
	from  *replica
	life  int // of the copy's peer
	open  *history.Watch
	pos   store.Revision // everything up to it was delivered
	until time.Duration  // when it moves on to another copy in any case
	begun bool
}

// Pace of watchers.
const (
	watchPoll = 80 * time.Millisecond
	watchMove = 20 * time.Second
)

// look delivers what is new.
func (w *watcher) look() {
	m := w.model
	if len(m.checks.clients.history.Operations) < mostRecorded {
		m.after(watchPoll, "watch", w.look)
	}
	if w.from != nil && (w.from.gone || !w.from.node.active() || w.from.node.life != w.life || m.now >= w.until) {
		w.close("")
	}
	if w.from == nil && !w.reopen() {
		return
	}
	v := w.from.state.View()
	events, through, err := v.Events(w.pos, shardPrefix(w.shard), 1000, 1<<20)
	if err != nil {
		w.open.Failure = history.Expired
		w.close(err.Error())
		w.begun = false
		return
	}
	for _, e := range events {
		w.open.Events = append(w.open.Events, changeEvent(m.now, e))
	}
	if through > w.pos {
		w.pos = through
		if len(events) == 0 && m.chance.IntN(8) == 0 {
			w.tell(history.Bookmark, history.Object{Revision: int64(through)})
		}
	}
}

// changeEvent is a change as a watch tells of it.
func changeEvent(at time.Duration, e store.Event) history.Event {
	told := history.Event{Kind: history.Modified, At: at, Object: history.Object{
		Key: e.Key, UID: e.Create.String(), Value: string(e.Value), Revision: int64(e.Revision),
	}}
	switch {
	case e.Delete:
		told.Kind, told.Object.Value = history.Deleted, string(e.Prev)
	case e.PrevMod == 0:
		told.Kind = history.Added
	}
	return told
}

func (w *watcher) tell(kind history.EventKind, o history.Object) {
	w.open.Events = append(w.open.Events, history.Event{Kind: kind, At: w.model.now, Object: o})
}

// reopen resumes on some copy after the last event; the first time, and after its revision was forgotten, with the present objects.
func (w *watcher) reopen() bool {
	m := w.model
	var able []*replica
	for _, r := range w.shard.replicas {
		fresh := w.begun || r == w.shard.leads // the present objects are the newest, also elsewhere
		if !r.gone && fresh && r.node.active() && r.state.View().Revision() >= max(w.pos, 1) {
			able = append(able, r)
		}
	}
	if len(able) == 0 {
		return false
	}
	w.from = able[m.chance.IntN(len(able))]
	w.life, w.until = w.from.node.life, m.now+m.between(watchMove/2, watchMove*3/2)
	w.open = &history.Watch{
		ID: m.checks.clients.watches, Client: w.id, Peer: w.from.node.name, Key: shardPrefix(w.shard), After: int64(w.pos), Invoke: m.now, Opened: m.now,
	}
	m.checks.clients.watches++
	v := w.from.state.View()
	if w.begun {
		if m.cfg.bug == bugEventSkipped {
			w.pos = v.Revision()
		}
		return true
	}
	w.begun, w.open.After = true, 0
	v.Ascend(shardPrefix(w.shard), func(kv store.KV) bool {
		w.tell(history.Initial, object(kv))
		return true
	})
	w.pos = v.Revision()
	w.tell(history.InitialEnd, history.Object{Revision: int64(w.pos)})
	return true
}

func (w *watcher) close(why string) {
	w.open.Closed, w.open.Error = w.model.now, why
	w.model.checks.clients.history.Watches = append(w.model.checks.clients.history.Watches, *w.open)
	w.from, w.open = nil, nil
}
