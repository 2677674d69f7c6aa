package model

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// recoverShards lets every shard that has lost most of its voters go on from the newest copy on the nodes, as peer recover does. What only
// the lost voters had is lost, which whoever asked for it has agreed to.
func (m *Model) recoverShards(nodes []*node) {
	for _, s := range m.shards {
		var best *replica
		for _, r := range s.replicas {
			if !r.gone && r.node.active() && slices.Contains(nodes, r.node) && (best == nil || r.newer(best.termAt(best.last()), best.last())) {
				best = r
			}
		}
		if best != nil && !s.canDecide() {
			best.recover()
		}
	}
}

// canDecide tells whether most voters of a shard live.
func (s *shard) canDecide() bool {
	living := 0
	for _, id := range s.voterIDs {
		if r := s.replica(id); r != nil && r.node.active() {
			living++
		}
	}
	return living > len(s.voterIDs)/2
}

// recover makes the replica the only one of its shard, under an ID that none ever had. The others are deleted before they start again.
func (r *replica) recover() {
	m, s := r.model, r.shard
	m.note("shard %d is recovered from the copy on %s at entry %d; %d entries are lost", s.number, r.node.name, r.applied, s.index-r.applied)
	for _, other := range s.replicas {
		if other != r {
			other.resign()
			other.gone = true
		}
	}
	r.resign()
	r.log = r.log[:r.applied-r.base]
	r.commit, r.synced = r.applied, r.applied
	r.id = max(s.assignment.Next, slices.Max(s.voterIDs)+1)
	r.members = shardmap.Members{Voters: map[uint64]string{r.id: r.node.name}}
	s.assignment = s.assignment.Recover(r.node.name, r.node.disk.identity, r.id)
	s.voters, s.voterIDs = 1, []uint64{r.id}
	s.rewind(r)
	r.role, r.term, r.vote, r.progress = leading, r.term+1, r.id, map[uint64]*progress{}
	r.propose(&entry{}, func(store.Result, error) {})
	m.checks.clients.forget(s)
	m.writeAssignment(s)
}

// rewind makes what a replica has the truth.
func (s *shard) rewind(r *replica) {
	m := s.model
	s.digests = s.digests[:max(0, len(s.digests)-int(s.index-r.applied))]
	s.index = r.applied
	old := s.objects
	s.objects, s.sorted = maps.Clone(old), nil
	clear(s.objects)
	r.state.View().Ascend("", func(kv store.KV) bool {
		if isObject(kv.Key) {
			s.objects[kv.Key] = s.decode(kv.Key, kv.Value, kv.Mod)
		}
		return true
	})
	for _, key := range slices.Sorted(maps.Keys(old)) {
		before, _ := old[key].(*corev1.Pod)
		now, _ := s.objects[key].(*corev1.Pod)
		if before != nil && (now == nil || now.ResourceVersion != before.ResourceVersion) {
			m.checks.move(before, now)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if now, ok := s.objects[key].(*corev1.Pod); ok && old[key] == nil {
			m.checks.move(nil, now)
		}
	}
	for _, n := range m.nodes {
		n.stale = true
	}
	for _, other := range m.shards {
		for _, leader := range other.replicas {
			if leader.turns != nil && s.number == 0 {
				leader.turns.miss()
			}
		}
		if kv, ok := r.state.View().Get(shardmap.Key(other.number)); ok && s.number == 0 {
			other.assignedAt = kv.Mod
		}
	}
}

// writeAssignment writes down what was decided without the meta shard, until it stands.
func (m *Model) writeAssignment(s *shard) {
	user := m.shards[0].leader
	again := func() { m.after(500*time.Millisecond, "assign", func() { m.writeAssignment(s) }) }
	if user == nil {
		again()
		return
	}
	m.assign(user, s, s.assignment, func(err error) {
		if err != nil {
			again()
		}
	})
}
