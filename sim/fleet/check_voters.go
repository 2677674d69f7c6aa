package fleet

import (
	"context"
	"slices"
	"time"

	"shoal/consensus"
)

const (
	// votersWanted is how many replicas of a shard vote, where there are peers enough.
	votersWanted = 3
	// replacedWithin is how long a voter may be dead while another peer could take its place: the hysteresis, and the time to catch up.
	replacedWithin = 2 * time.Minute
)

// votersCheck holds that no shard's group ever has fewer voters than it should, and that dead ones are replaced while they can be.
type votersCheck struct {
	dead map[voter]time.Time // since when it is dead and could be replaced
}

type voter struct {
	shard uint64
	peer  string
}

// watchVoters looks at what the leaders say about their groups, until ctx ends.
func (r *run) watchVoters(ctx context.Context) {
	check := votersCheck{}
	for pause(ctx, 500*time.Millisecond) == nil {
		check.look(r, r.fleet.groups(), r.fleet.alive(), time.Now())
	}
}

// look compares groups, by shard, with the peers that are alive, of all that the cluster has.
func (c *votersCheck) look(r *run, groups map[uint64]consensus.ShardStatus, alive map[string]bool, now time.Time) {
	before := c.dead
	c.dead = map[voter]time.Time{}
	for shard, group := range groups {
		if len(group.Members) == 0 {
			continue // it leads, and has not read yet whom
		}
		var voters, dead []string
		for _, member := range group.Members {
			if !member.Voter {
				continue
			}
			voters = append(voters, member.Peer)
			if !alive[member.Peer] {
				dead = append(dead, member.Peer)
			}
		}
		if wanted := min(votersWanted, len(alive)); len(voters) < wanted {
			r.blame("voters", "shard %d has %d voters, and should have %d", shard, len(voters), wanted)
		}
		spare := 0
		for peer, runs := range alive {
			if runs && !slices.Contains(voters, peer) {
				spare++
			}
		}
		for _, peer := range dead {
			if spare == 0 || 2*len(dead) >= len(voters) {
				continue // nobody can take its place
			}
			id := voter{shard, peer}
			since, known := before[id]
			if !known {
				since = now
			}
			if c.dead[id] = since; now.Sub(since) > replacedWithin {
				r.blame("voters", "peer %s has been dead for %s and still votes in shard %d", peer, now.Sub(since), shard)
			}
		}
	}
}

// groups are the shards as their leaders see them; those without one are missing.
func (f *Fleet) groups() map[uint64]consensus.ShardStatus {
	groups := map[uint64]consensus.ShardStatus{}
	for _, m := range f.Machines() {
		inside, there := f.Inside(m)
		if !there {
			continue
		}
		for _, status := range inside.Store.Status() {
			if known, ok := groups[status.Shard]; status.Leading && (!ok || known.Term < status.Term) {
				groups[status.Shard] = status
			}
		}
	}
	return groups
}

// alive says of every peer of the cluster, by its ID, whether it runs and serves.
func (f *Fleet) alive() map[string]bool {
	alive := map[string]bool{}
	for _, m := range f.Machines() {
		if id := m.ID(); id != "" {
			_, alive[id] = f.Inside(m)
		}
	}
	return alive
}
