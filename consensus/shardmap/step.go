package shardmap

import "sort"

// Members is a raft group's membership as the group itself has it.
type Members struct {
	// Voters and NonVoters map replica IDs to peers.
	Voters, NonVoters map[uint64]string
}

func (m Members) has(r Replica) bool {
	return m.Voters[r.ID] == r.Peer || m.NonVoters[r.ID] == r.Peer
}

// StepKind is what a Step does.
type StepKind int

const (
	// Settled says that the group is as assigned, or that nothing can be done now.
	Settled StepKind = iota
	// AddNonVoter adds a replica that receives the log without a vote.
	AddNonVoter
	// Promote gives a caught-up replica its vote.
	Promote
	// Remove removes a replica for good.
	Remove
	// TransferAway hands leadership to Replica, because the leader is to be removed
	// and should not remove itself.
	TransferAway
)

// String is the kind in words.
func (k StepKind) String() string {
	switch k {
	case AddNonVoter:
		return "add non-voting"
	case Promote:
		return "promote"
	case Remove:
		return "remove"
	case TransferAway:
		return "transfer leadership to"
	default:
		return "settled"
	}
}

// Step is one membership change.
type Step struct {
	Kind    StepKind
	Replica uint64
	Peer    string
}

// Next returns the single change that brings the group closer to its assignment.
// leader is the replica that leads; caughtUp says which non-voting replicas have
// the whole log.
//
// The order is non-voting, caught up, promoted, and only then is an old voter
// removed, so that a change never leaves fewer voters than there were, and a dead
// newcomer never counts towards the quorum (adding a dead voter directly stops the
// group). One exception: raft does not take two replicas of one peer, so a replica
// that is to be replaced on its own peer, because its disk was wiped or it is to
// lose its vote, goes first.
func Next(a Assignment, m Members, leader uint64, caughtUp func(replica uint64) bool) Step {
	assigned := map[uint64]Replica{}
	for _, r := range a.Replicas {
		assigned[r.ID] = r
	}
	if step := promotion(a, m, caughtUp); step.Kind != Settled {
		return step
	}
	complete := true
	for _, r := range a.Replicas {
		if m.Voters[r.ID] != "" || m.NonVoters[r.ID] != "" {
			complete = complete && (!r.Voter || m.Voters[r.ID] != "")
			continue
		}
		complete = false
		if old, ok := replicaOn(r.Peer, m); ok {
			if _, stays := assigned[old]; !stays && !isOnlyVoter(old, m) {
				return removal(old, r.Peer, m, leader, assigned)
			}
			continue
		}
		return Step{Kind: AddNonVoter, Replica: r.ID, Peer: r.Peer}
	}
	if !complete {
		return Step{}
	}
	for _, id := range sortedIDs(m.NonVoters, m.Voters) {
		if _, stays := assigned[id]; stays || isOnlyVoter(id, m) {
			continue
		}
		peer := m.Voters[id] + m.NonVoters[id]
		return removal(id, peer, m, leader, assigned)
	}
	return Step{}
}

func promotion(a Assignment, m Members, caughtUp func(uint64) bool) Step {
	for _, r := range a.Replicas {
		if r.Voter && m.NonVoters[r.ID] != "" && caughtUp(r.ID) {
			return Step{Kind: Promote, Replica: r.ID, Peer: r.Peer}
		}
	}
	return Step{}
}

// removal removes the replica, after leadership has gone elsewhere if it leads.
func removal(id uint64, peer string, m Members, leader uint64, assigned map[uint64]Replica) Step {
	if id != leader {
		return Step{Kind: Remove, Replica: id, Peer: peer}
	}
	for _, to := range sortedIDs(m.Voters) {
		if _, stays := assigned[to]; stays && to != leader {
			return Step{Kind: TransferAway, Replica: to, Peer: m.Voters[to]}
		}
	}
	for _, to := range sortedIDs(m.Voters) {
		if to != leader {
			return Step{Kind: TransferAway, Replica: to, Peer: m.Voters[to]}
		}
	}
	return Step{}
}

func isOnlyVoter(id uint64, m Members) bool { return len(m.Voters) == 1 && m.Voters[id] != "" }

func replicaOn(peer string, m Members) (uint64, bool) {
	for _, id := range sortedIDs(m.Voters, m.NonVoters) {
		if m.Voters[id] == peer || m.NonVoters[id] == peer {
			return id, true
		}
	}
	return 0, false
}

func sortedIDs(sets ...map[uint64]string) []uint64 {
	var all []uint64
	for _, set := range sets {
		var ids []uint64
		for id := range set {
			ids = append(ids, id)
		}
		sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
		all = append(all, ids...)
	}
	return all
}
