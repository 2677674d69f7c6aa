package shards

import "slices"

// replan is a step for a busy shard whose change cannot end: an assigned replica is pending, and its
// peer is dead or has it quarantined for good. Raft removes nobody before all assigned replicas are in
// their places, so it would be waited for without end. Whatever else is under way goes on.
func (p *planner) replan(s *shard) (Step, bool) {
	for _, r := range s.replicas {
		if !slices.Contains(s.pending, r.Peer) || p.peer(r.Peer).state != dead && !p.brokenForGood(s, r) {
			continue
		}
		reason := p.whyGone(s, r) + " and had not caught up"
		if q := p.heir(s, r); q != nil {
			return p.step(s, with(without(s, r.Peer), Replica{Peer: q.ID, Voter: r.Voter}), reason)
		}
		// Nobody can take it over. It is given up, unless the group would then remove a voter whose
		// place it was to take: the group stays as it is until somebody comes.
		if rest := without(s, r.Peer); countVoters(rest) >= max(1, p.staying(s)) {
			return p.step(s, rest, reason)
		}
	}
	return Step{}, false
}

// heir is the peer that takes over from a replica that never came to be: if it was to vote, one that
// votes already and was to go, because it has returned, say, and has nothing to copy; else a new one.
func (p *planner) heir(s *shard, r Replica) *peer {
	if r.Voter {
		for _, id := range slices.Sorted(slices.Values(s.voting)) {
			if _, broken := s.broken[id]; !broken && !s.has(id) && p.peer(id).state == alive {
				return p.peer(id)
			}
		}
	}
	return p.candidate(s, r.Peer)
}

// staying is how many vote now and do not want to leave.
func (p *planner) staying(s *shard) int {
	n := 0
	for _, id := range s.voting {
		if p.peer(id).state != leaving {
			n++
		}
	}
	return n
}
