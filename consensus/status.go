package consensus

import (
	"context"
	"maps"
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
	if known.answersWhere() {
		return known, nil
	}
	var there ShardStatus
	err := h.reach(ctx, shard,
		func(context.Context, *replica) error {
			if there = h.statusOf(shard); !there.answersWhere() {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return nil
		},
		func(ctx context.Context, peer string) (err error) {
			if there, err = h.statusAt(ctx, peer, shard); err == nil && !there.answersWhere() {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return err
		})
	if err != nil {
		return known, err
	}
	known.Leader, known.Term, known.Members = there.Leader, there.Term, there.Members
	if known.Assigned == nil {
		known.Assigned = there.Assigned
	}
	return known, nil
}

// answersWhere says that the status is from a replica that knows its group and its leader.
func (s ShardStatus) answersWhere() bool { return s.Local && s.Leader != "" && s.Members != nil }

// Held lists the shards that count on this host: it is assigned a replica, or has one that its group has not removed yet, running or not.
func (h *Host) Held() []uint64 {
	held := map[uint64]bool{}
	for _, d := range h.disk.replicas() {
		if !d.Removing {
			held[d.Shard] = true
		}
	}
	for _, a := range h.routes.all() {
		if _, assigned := a.Of(h.cfg.PeerID); assigned {
			held[a.Shard] = true
		}
	}
	return slices.Sorted(maps.Keys(held))
}

// Quarantined lists the shards whose replica here is left stopped, with the reason.
func (h *Host) Quarantined() map[uint64]string {
	all := map[uint64]string{}
	for _, d := range h.disk.replicas() {
		if !d.Removing && d.Quarantine != "" {
			all[d.Shard] = d.Quarantine
		}
	}
	return all
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
			s.Assigned = append(s.Assigned, Member{Peer: r.Peer, ReplicaID: r.ID, Voter: r.Voter})
			peers[r.ID] = r.Peer
		}
	}
	h.mu.Lock()
	s.Trouble = h.trouble[shard]
	h.mu.Unlock()
	for _, d := range h.disk.replicas() {
		if d.Shard == shard && !d.Removing && d.Quarantine != "" {
			s.Quarantine = d.Quarantine
		}
	}
	r, here := h.replica(shard)
	if !here {
		return s
	}
	s.Local, s.ReplicaID = true, r.id
	if hub := r.hub(); hub != nil {
		s.Revision = hub.current().Revision()
	}
	for _, info := range infos {
		if info.ShardID == shard && !info.Pending {
			s.Voter = !info.IsNonVoting
		}
	}
	if m := r.members.Load(); m != nil {
		s.Members = m.members()
		for _, member := range s.Members {
			peers[member.ReplicaID] = member.Peer
		}
	}
	report, _ := h.leaders.get(shard)
	s.Term, s.Leading = report.Term, leads(report)
	s.Leader = peers[report.LeaderID]
	return s
}

// leaderPeer is the peer believed to lead the shard, "" if none is known.
func (h *Host) leaderPeer(shard uint64) string {
	report, _ := h.leaders.get(shard)
	if r, here := h.replica(shard); here && report.LeaderID != 0 {
		if m := r.members.Load(); m != nil && m.Voters[report.LeaderID] != "" {
			return m.Voters[report.LeaderID]
		}
	}
	return h.routes.leader(shard)
}
