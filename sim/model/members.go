package model

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/placement/shards"
)

// Times of peer/shardkeeper.go, peer/balance.go and consensus/reconfigure.go.
const (
	keepInterval    = time.Second
	balanceInterval = 5 * time.Second
	stepEvery       = 100 * time.Millisecond
	// gossipNotices is how long after its last sign of life gossip gives a peer up.
	gossipNotices = 4 * time.Second
)

// keeper is what the meta leader does for the shards, as peer/shardkeeper.go does: which peer is to hold which replica, and who should lead.
type keeper struct {
	meta    *meta
	down    map[string]time.Time
	leaders shards.Leaders
	busy    int
}

func (k *keeper) keep() {
	t := k.meta
	if !t.leads() {
		return
	}
	t.node.do(keepInterval, "keep shards", k.keep)
	m := t.model
	now := t.node.monotonic()
	peers := k.peers(now)
	if k.busy > 0 {
		return
	}
	options := shards.Options{Voters: m.cfg.Voters, Hysteresis: m.cfg.ReplaceAfter}
	for _, step := range shards.Plan(peers, m.assignments(t.node), options, now) {
		s := m.shards[step.Shard]
		want := make([]shardmap.Want, len(step.Want))
		for i, replica := range step.Want {
			want[i] = shardmap.Want{Peer: replica.Peer, Voter: replica.Voter}
		}
		k.busy++
		var group shardmap.Members
		if leader := s.leaderFor(t.node); leader != nil {
			group = leader.members
		}
		m.assign(t.node, s, s.assignment.Place(want, group), func(err error) {
			k.busy--
			if err == nil {
				m.note("shard %d is reassigned: %s", s.number, step.Reason)
			}
		})
	}
}

// peers joins who has joined with who is heard of.
func (k *keeper) peers(now time.Time) []shards.Peer {
	t := k.meta
	var peers []shards.Peer
	for _, n := range t.model.nodes {
		if n.left {
			continue
		}
		if last := t.heard(n); now.Sub(last) < gossipNotices {
			delete(k.down, n.name)
		} else if k.down[n.name].IsZero() {
			k.down[n.name] = now
		}
		peers = append(peers, shards.Peer{ID: n.name, Zone: n.zone, Weight: 1, Down: k.down[n.name], Leaves: n.leaving})
	}
	return peers
}

// assignments are all shards as a peer sees them. One whose leader it cannot ask, or that is not as assigned, is busy.
func (m *Model) assignments(from *node) []shards.Assignment {
	all := make([]shards.Assignment, len(m.shards))
	for i, s := range m.shards {
		all[i].Shard = s.number
		for _, replica := range s.assignment.Replicas {
			all[i].Replicas = append(all[i].Replicas, shards.Replica{Peer: replica.Peer, Voter: replica.Voter})
		}
		leader := s.leaderFor(from)
		all[i].Busy = leader == nil || !s.assignment.SettledIn(leader.members)
		if leader != nil {
			all[i].Leader = leader.node.name
		}
		if all[i].Busy && leader != nil {
			all[i].Group = &shards.Group{
				Voters: slices.Collect(maps.Values(leader.members.Voters)), Pending: s.assignment.Pending(leader.members),
			}
		}
	}
	return all
}

// assign writes an assignment down in the meta shard, if it is still what it was.
func (m *Model) assign(from *node, s *shard, next shardmap.Assignment, then func(error)) {
	key := shardmap.Key(s.number)
	m.proposeTransaction(from, m.shards[0], store.Transaction{
		Conditions: []store.Condition{{Key: key, Revision: s.assignedAt}}, Ops: []store.Op{{Key: key, Value: next.Encode()}},
	}, nil, func(result store.Result, err error) {
		if err == nil && !result.OK {
			err = fmt.Errorf("the assignment of shard %d has changed meanwhile", s.number)
		}
		then(err)
	})
}

// assigned takes in who is to hold a shard.
func (m *Model) assigned(event store.Event) {
	a, err := shardmap.Decode(event.Key, event.Value)
	if err != nil {
		panic(err) // of the model's own making
	}
	s := m.shards[a.Shard]
	concerned := s.holders()
	s.assignment, s.assignedAt, s.reassigned = a, event.Revision, s.model.now
	for _, n := range s.holders() {
		if !slices.Contains(concerned, n) {
			concerned = append(concerned, n)
		}
	}
	for _, n := range concerned {
		n.do(feedDelay, "reconcile", func() { n.reconcile(s) })
	}
	if s.leads != nil {
		s.leads.reconfigure()
	}
}

// holders are the nodes that hold a replica or are to.
func (s *shard) holders() []*node {
	var nodes []*node
	for _, r := range s.replicas {
		if !r.gone && !slices.Contains(nodes, r.node) {
			nodes = append(nodes, r.node)
		}
	}
	for _, replica := range s.assignment.Replicas {
		if n := s.model.byName[replica.Peer]; n != nil && !slices.Contains(nodes, n) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// reconcile makes a peer hold what it is assigned, and give up what its group has removed, as consensus/reconcile.go does. What the group
// still counts stays: it may be needed for the quorum that removes it.
func (n *node) reconcile(s *shard) {
	m := n.model
	again := func() { n.do(time.Second, "reconcile", func() { n.reconcile(s) }) }
	if m.shards[0].leaderFor(n) == nil && s.on(n) == nil {
		again()
		return
	}
	want, wanted := s.assignment.Of(n.name)
	if have := s.on(n); have != nil {
		if wanted && have.id == want.ID {
			return
		}
		leader := s.leaderFor(n)
		if leader == nil || !leader.removed[have.id] {
			again()
			return
		}
		m.note("%s deletes its removed copy %d of shard %d", n.name, have.id, s.number)
		have.resign()
		have.gone = true
		s.settleLeader()
	}
	if !wanted {
		return
	}
	if want.Disk != n.disk.identity {
		if next, changed := s.assignment.Claim(n.name, n.disk.identity); changed {
			m.assign(n, s, next, func(err error) {
				if err != nil {
					again()
				}
			})
		}
		return
	}
	m.newReplica(s, n, want.ID)
}

// reconfigure brings the group that this replica leads one step nearer to its assignment, as consensus/reconfigure.go does, until it is there.
func (r *replica) reconfigure() {
	if r.changing || !r.leads {
		return
	}
	r.changing = true
	r.node.do(stepEvery, "reconfigure", func() {
		r.changing = false
		if r.gone || !r.leads || r.shard.assignment.SettledIn(r.members) {
			return
		}
		r.step()
		r.reconfigure()
	})
}

func (r *replica) step() {
	m, a := r.model, r.shard.assignment
	for _, assigned := range a.Replicas {
		if r.removed[assigned.ID] {
			m.assign(r.node, r.shard, a.Renew(assigned.ID), func(error) {})
			return
		}
	}
	if slices.ContainsFunc(r.log[r.applied-r.base:], func(e *entry) bool { return e.members != nil }) {
		return // one change at a time
	}
	next := shardmap.Next(a, r.members, r.id, r.caughtUp)
	members := cloneMembers(r.members)
	e := &entry{members: &members}
	switch next.Kind {
	case shardmap.AddNonVoter:
		if members.NonVoters == nil {
			members.NonVoters = map[uint64]string{}
		}
		members.NonVoters[next.Replica] = next.Peer
	case shardmap.Promote:
		delete(members.NonVoters, next.Replica)
		members.Voters[next.Replica] = next.Peer
	case shardmap.Remove:
		delete(members.NonVoters, next.Replica)
		delete(members.Voters, next.Replica)
		e.removed = next.Replica
	case shardmap.TransferAway:
		r.transfer(next.Replica)
		return
	default:
		return
	}
	m.note("shard %d: %s %d on %s", r.shard.number, next.Kind, next.Replica, next.Peer)
	r.propose(e, func(store.Result, error) {})
}

// caughtUp asks a copy that does not vote yet whether it has everything that this leader has now.
func (r *replica) caughtUp(id uint64) bool {
	other := r.shard.replica(id)
	return other != nil && r.model.reaches(r.node, other.node) && (other.applied >= r.applied || r.model.cfg.bug == bugHastyRepair)
}

// joinGroup takes in a change of membership.
func (r *replica) joinGroup(e *entry) {
	r.members = cloneMembers(*e.members)
	if e.removed != 0 {
		r.removed[e.removed] = true
		delete(r.progress, e.removed)
		if other := r.shard.replica(e.removed); other != nil && r.role == leading {
			other.node.do(feedDelay, "reconcile", func() { other.node.reconcile(r.shard) })
		}
	}
	if r.role == leading {
		r.replicateAll()
		r.reconfigure()
	}
}

// leave is a replica that reads of its own removal.
func (r *replica) leave() {
	r.resign()
	r.role = follower
	r.shard.settleLeader()
}

// transfer hands leadership over to a voter, if it can take it: it is told to start an election at once.
func (r *replica) transfer(to uint64) {
	ok := func(other *replica) bool {
		return other != nil && other != r && other.voter() && r.model.reaches(r.node, other.node) && other.last() >= r.commit
	}
	other := r.shard.replica(to)
	if !ok(other) {
		for _, id := range sortedKeys(r.members.Voters) {
			if other = r.shard.replica(id); ok(other) {
				break
			}
		}
	}
	if !ok(other) || r.role != leading {
		return
	}
	term := r.term
	r.model.send(r.node, other.node, "timeout now", func() {
		if other.gone || other.term != term || other.role != follower {
			return
		}
		if r.term == term && r.role == leading {
			r.stepDown(term) // it takes no more entries, so that the other's log is complete
		}
		other.handed = true
		other.campaign()
	})
}

// balance hands over what others should lead. Every peer plans for all, and acts on its own only.
func (k *keeper) balance() {
	t := k.meta
	if !t.leads() {
		return
	}
	t.node.do(balanceInterval, "balance", k.balance)
	now := t.node.monotonic()
	peers := k.peers(now)
	for i := range peers {
		if t.model.byName[peers[i].ID].unfit() {
			peers[i].Leaves = true
		}
	}
	for _, transfer := range k.leaders.Due(peers, t.model.assignments(t.node), now) {
		s := t.model.shards[transfer.Shard]
		if to, ok := s.assignment.Of(transfer.To); ok && s.leads != nil && s.leads.node.name == transfer.From {
			s.leads.transfer(to.ID)
		}
	}
}
