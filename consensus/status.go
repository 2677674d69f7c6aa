package consensus

import (
	"context"
	"slices"

	"github.com/lni/dragonboat/v4"
)

// Status is what this host knows of every shard, in order of their numbers.
func (h *Host) Status() []ShardStatus {
	infos := h.shardInfos()
	var all []ShardStatus
	for _, shard := range h.Shards() {
		all = append(all, h.describe(shard, infos))
	}
	return all
}

// Where answers where a shard's replicas are and who leads it, from what is known
// here and else from the peers that hold it. Errors: those of Get.
func (h *Host) Where(ctx context.Context, shard uint64) (ShardStatus, error) {
	known := h.statusOf(shard)
	if known.Leader != "" {
		return known, nil
	}
	var there ShardStatus
	err := h.reach(ctx, shard,
		func(context.Context, *replica) error {
			if there = h.statusOf(shard); there.Leader == "" {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return nil
		},
		func(ctx context.Context, peer string) (err error) {
			if there, err = h.statusAt(ctx, peer, shard); err == nil && there.Leader == "" {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return err
		})
	if err != nil {
		return known, err
	}
	known.Leader, known.Term = there.Leader, there.Term
	if len(known.Members) == 0 {
		known.Members = there.Members
	}
	return known, nil
}

func (h *Host) statusOf(shard uint64) ShardStatus { return h.describe(shard, h.shardInfos()) }

func (h *Host) shardInfos() []dragonboat.ShardInfo {
	info := h.nh.GetNodeHostInfo(dragonboat.NodeHostInfoOption{SkipLogInfo: true})
	if info == nil {
		return nil
	}
	return info.ShardInfoList
}

func (h *Host) describe(shard uint64, infos []dragonboat.ShardInfo) ShardStatus {
	s := ShardStatus{Shard: shard, Leader: h.routes.leader(shard)}
	peers := map[uint64]string{}
	if a, ok := h.routes.assignment(shard); ok {
		for _, r := range a.Replicas {
			s.Members = append(s.Members, Member{Peer: r.Peer, ReplicaID: r.ID, Voter: r.Voter})
			peers[r.ID] = r.Peer
		}
	}
	h.mu.Lock()
	s.Trouble = h.trouble[shard]
	h.mu.Unlock()
	r, here := h.replica(shard)
	if !here {
		return s
	}
	s.Local, s.ReplicaID = true, r.id
	if hub := r.hub(); hub != nil {
		s.Revision = hub.current().Revision()
	}
	for _, info := range infos {
		if info.ShardID != shard || info.Pending {
			continue
		}
		s.Voter = !info.IsNonVoting
		// The group knows its voters best; who is assigned and no voter has no vote yet.
		s.Members = slices.DeleteFunc(s.Members, func(m Member) bool { return info.Replicas[m.ReplicaID] != "" })
		for i := range s.Members {
			s.Members[i].Voter = false
		}
		for id, peer := range info.Replicas {
			peers[id] = peer
			s.Members = append(s.Members, Member{Peer: peer, ReplicaID: id, Voter: true})
		}
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return int(a.ReplicaID) - int(b.ReplicaID) })
	report, _ := h.leaders.get(shard)
	s.Term, s.Leading = report.Term, leads(report)
	s.Leader = peers[report.LeaderID]
	return s
}

// leaderPeer is the peer believed to lead the shard, "" if none is known.
func (h *Host) leaderPeer(shard uint64) string {
	report, _ := h.leaders.get(shard)
	if report.LeaderID == 0 {
		return h.routes.leader(shard)
	}
	if a, ok := h.routes.assignment(shard); ok {
		for _, r := range a.Replicas {
			if r.ID == report.LeaderID {
				return r.Peer
			}
		}
	}
	return h.voters(shard)[report.LeaderID]
}
