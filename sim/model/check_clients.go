package model

import (
	"strings"
	"time"

	"shoal/consensus/store"
	"shoal/sim/history"
)

// clientsCheck lets a few clients work through everything, and holds what they were told to what a store promises: acknowledged writes
// survive, each object's operations have one order that agrees with real time, watches tell everything in order, and no client sees a
// revision go back. The judges are those of sim/history; their names are the checkers'.
type clientsCheck struct {
	history   history.History
	watchers  []*watcher
	overseers []*overseer
	watches   int
	lost      map[uint64]bool // shards that were recovered from a copy: what was acknowledged there may be gone
}

// modelClients is how many clients there are, besides a watcher for each of the first data shards, and modelOverseers how many follow all of
// them.
const (
	modelClients   = 4
	modelOverseers = 2
)

// begin starts the clients once workloads are written.
func (c *clientsCheck) begin(m *Model) {
	c.lost = map[uint64]bool{}
	if m.cfg.NoClients {
		return
	}
	for i := range modelClients {
		c := &client{model: m, id: i, known: map[string]history.Object{}, seen: map[uint64]store.Revision{}}
		m.after(2*time.Second+m.between(0, clientPause), "client", c.act)
	}
	for i, s := range m.shards[1:min(len(m.shards), 1+modelClients)] {
		w := &watcher{model: m, id: modelClients + i, shard: s}
		c.watchers = append(c.watchers, w)
		m.after(2*time.Second, "watch", w.look)
	}
	for i := range modelOverseers {
		o := &overseer{model: m, id: 2*modelClients + i}
		c.overseers = append(c.overseers, o)
		m.after(2*time.Second, "watch all", o.look)
	}
}

// forget takes a shard out of what is judged.
func (c *clientsCheck) forget(s *shard) { c.lost[s.number] = true }

// finish reads everything a last time, and judges.
func (c *clientsCheck) finish(m *Model) {
	if m.cfg.NoClients {
		return
	}
	for _, w := range c.watchers {
		if w.open != nil {
			w.close("")
		}
	}
	for _, o := range c.overseers {
		o.leave("", "")
	}
	for _, s := range m.clientShards() {
		if s.leads == nil || c.lost[s.number] {
			continue
		}
		v := s.leads.state.View()
		op := history.Operation{
			ID: len(c.history.Operations), Client: modelClients * 10, Peer: s.leader.name, Kind: history.List, Key: shardPrefix(s),
			Invoke: m.now, Return: m.now + 1, Final: true, Outcome: history.OK, ListRevision: int64(v.Revision()),
		}
		v.Ascend(op.Key, func(kv store.KV) bool {
			op.Items = append(op.Items, object(kv))
			return true
		})
		c.history.Operations = append(c.history.Operations, op)
	}
	h := c.judged(m)
	done := 0
	for i := range h.Operations {
		if h.Operations[i].Outcome == history.OK {
			done++
		}
	}
	m.note("clients: %d of %d operations were answered, %d watches", done, len(h.Operations), len(h.Watches))
	for _, v := range history.Check(h, history.Options{Timeout: time.Minute}) {
		if v.Checker != history.CheckUndecided {
			m.violate(v.Checker, "at %s: %s: %s", v.At, v.Key, v.Message)
		}
	}
}

// judged is the history without the shards of which something may be lost.
func (c *clientsCheck) judged(m *Model) *history.History {
	if len(c.lost) == 0 {
		return &c.history
	}
	drop := func(key string) bool {
		if key == clientPrefix {
			return true
		}
		for _, s := range m.shards {
			if c.lost[s.number] && strings.HasPrefix(key, shardPrefix(s)) {
				return true
			}
		}
		return false
	}
	h := &history.History{Transactions: c.history.Transactions}
	for _, op := range c.history.Operations {
		if !drop(op.Key) {
			h.Operations = append(h.Operations, op)
		}
	}
	for _, w := range c.history.Watches {
		if !drop(w.Key) {
			h.Watches = append(h.Watches, w)
		}
	}
	return h
}
