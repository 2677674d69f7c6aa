package model

import (
	"bytes"
	"maps"
	"slices"
)

// replicasCheck looks at shards from inside. Model.took compares what every replica's every entry did; here are the rest: a change of membership
// never makes the voters fewer than they were or should be, whoever gets a vote has the log, and at the end equal index means equal bytes.
type replicasCheck struct{}

// regrouped follows a change of membership, when the first replica has applied it.
func (c *checks) regrouped(s *shard, r *replica, e *entry) {
	m := c.model
	before, now := s.voters, len(e.members.Voters)
	s.voters = now
	if e.removed != 0 && now < before && now < min(m.wantedVoters(), m.peersLeft()) {
		m.violate(checkerReplicas, "shard %d has %d voters after the removal of replica %d, %d before", s.number, now, e.removed, before)
	}
	for _, id := range sortedKeys(e.members.Voters) {
		if slices.Contains(s.voterIDs, id) {
			continue
		}
		if voter := s.replica(id); voter == nil || voter.applied+keepEntries < r.applied || voter.applied == 0 {
			m.violate(checkerReplicas, "shard %d gives replica %d a vote, which has not caught up", s.number, id)
		}
	}
	s.voterIDs = sortedKeys(e.members.Voters)
}

func (m *Model) wantedVoters() int {
	if m.cfg.Voters == 0 {
		return 3
	}
	return m.cfg.Voters
}

// peersLeft is on how many peers replicas can be.
func (m *Model) peersLeft() int {
	left := 0
	for _, n := range m.nodes {
		if !n.left && !n.leaving {
			left++
		}
	}
	return left
}

// finish compares whole states, byte for byte.
func (replicasCheck) finish(m *Model) {
	for _, s := range m.shards {
		type state struct {
			node *node
			data []byte
		}
		states := map[uint64]state{}
		for _, r := range s.replicas {
			if r.gone {
				continue
			}
			var data bytes.Buffer
			if err := r.state.View().WriteSnapshot(&data); err != nil {
				panic(err) // a bytes.Buffer takes everything
			}
			first, known := states[r.applied]
			if known && !bytes.Equal(first.data, data.Bytes()) {
				m.violate(checkerReplicas, "shard %d: at entry %d the copies on %s and %s are not the same bytes", s.number, r.applied, first.node.name, r.node.name)
			}
			if !known {
				states[r.applied] = state{r.node, data.Bytes()}
			}
		}
		m.note("shard %d ends at %d with copies at %v", s.number, s.index, slices.Sorted(maps.Keys(states)))
	}
}
