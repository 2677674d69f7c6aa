package model

import (
	"shoal/consensus/merge"
	"shoal/consensus/store"
)

// mostClientShards bounds the shards that clients write to: whoever watches several closes every one of them for each event in another.
const mostClientShards = 8

// clientShards are those that clients write to.
func (m *Model) clientShards() []*shard { return m.shards[1:min(len(m.shards), 1+mostClientShards)] }

// manyCuts is that of peer/api/storage/list.go.
const manyCuts = 20

// snapshot reads all clients' keys at one revision through a peer, as peer/api/storage/snapshot.go and list.go do: every shard's leader confirms
// how far it is, all of them pass the highest of these revisions, and are read there. Where that lies inside of a transaction, they
// are read again at its end. then may never be called: whoever waits gives up by itself.
func (m *Model) snapshot(at *node, then func(items []store.KV, rev store.Revision, ok bool)) {
	shards := m.clientShards()
	highest := merge.ClosedThrough(store.Tick) // as in peer/api/storage/snapshot.go
	all := gather(len(shards), func(ok bool) {
		if !ok {
			at.do(retryPropose, "no snapshot", func() { then(nil, 0, false) })
			return
		}
		m.readAt(at, highest, manyCuts, then)
	})
	for i, s := range shards {
		m.confirmed(at, s, func(v store.View, ok bool) {
			if ok {
				highest = max(highest, v.Revision())
			}
			all(i, ok)
		})
	}
}

// gather returns a function to be called for each of so many, with what came of it; then it tells whether all went well. A message may
// come twice, and counts once.
func gather(open int, then func(ok bool)) func(i int, ok bool) {
	well, came := true, make([]bool, open)
	return func(i int, ok bool) {
		if came[i] {
			return
		}
		came[i], well = true, well && ok
		if open--; open == 0 {
			then(well)
		}
	}
}

// confirmed gets the newest view of a shard, of which its leader is sure.
func (m *Model) confirmed(at *node, s *shard, then func(v store.View, ok bool)) {
	leader := s.leaderFor(at)
	if leader == nil {
		then(store.View{}, false)
		return
	}
	m.send(at, leader.node, "read", func() {
		leader.confirm(func() {
			v := leader.state.View()
			m.send(leader.node, at, "answer", func() {
				at.observe(v.Revision())
				then(v, true)
			})
		})
	})
}

// readAt reads all clients' keys at a revision that some shard has reached.
func (m *Model) readAt(at *node, rev store.Revision, cuts int, then func(items []store.KV, rev store.Revision, ok bool)) {
	shards := m.clientShards()
	lists, whole := make([][]store.KV, len(shards)), rev
	all := gather(len(shards), func(ok bool) {
		switch {
		case !ok || cuts == 0:
			at.do(retryPropose, "no snapshot", func() { then(nil, 0, false) })
		case whole > rev:
			m.readAt(at, whole, cuts-1, then)
		default:
			then(merge.Keys(lists), rev, true)
		}
	})
	for i, s := range shards {
		m.passed(at, s, rev, func(v store.View, ok bool) {
			own := merge.OnShard(s.number, rev)
			if m.cfg.bug == bugNoOneMoment {
				own = v.Revision()
			}
			old, err := store.View{}, error(nil)
			if ok {
				old, err = v.At(own, store.Range{Prefix: clientPrefix})
			}
			if !ok || err != nil {
				all(i, false)
				return
			}
			if end := v.Whole(own); end > own {
				whole = max(whole, end)
			}
			lists[i] = nil
			old.Ascend(clientPrefix, func(kv store.KV) bool {
				lists[i] = append(lists[i], kv)
				return true
			})
			all(i, true)
		})
	}
}

// passed gets a view of a shard that has passed a revision: from the peer's own copy if that has, else from the leader, after the shard was
// closed up to there.
func (m *Model) passed(at *node, s *shard, rev store.Revision, then func(v store.View, ok bool)) {
	if own := s.on(at); own != nil && merge.ClosedThrough(own.state.View().Revision()) >= rev {
		then(own.state.View(), true)
		return
	}
	m.closeShard(at, s, merge.CloseTarget(s.number, rev), func(err error) {
		if err != nil {
			then(store.View{}, false)
			return
		}
		m.confirmed(at, s, then)
	})
}

// closeShard lets a shard pass a revision that another one has reached, as Host.Close does: with a transaction that changes nothing.
func (m *Model) closeShard(at *node, s *shard, upTo store.Revision, then func(error)) {
	m.request(at, s, store.Transaction{Stamp: upTo}, nil, func(_ store.Result, err error) { then(err) })
}
