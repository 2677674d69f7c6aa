package consensus

import (
	"context"
	"maps"
	"slices"
	"sync"

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
	there, _, err := h.askWhere(ctx, shard, h.reach)
	if err != nil {
		return known, err
	}
	return known.completed(there), nil
}

// WhereAll answers Where for all shards that this host knows of (all there are after ShardsRead), those left out that nobody answers for
// until ctx ends. Few peers are asked, each for all that it knows.
func (h *Host) WhereAll(ctx context.Context) map[uint64]ShardStatus {
	open, found := map[uint64]ShardStatus{}, map[uint64]ShardStatus{}
	take := func(answers ...ShardStatus) {
		for _, there := range answers {
			if known, wanted := open[there.Shard]; wanted && there.answersWhere() {
				found[there.Shard] = known.completed(there)
				delete(open, there.Shard)
			}
		}
	}
	for _, known := range h.Status() {
		open[known.Shard] = known
		take(known)
	}
	for _, shard := range slices.Sorted(maps.Keys(open)) {
		known, unanswered := open[shard]
		if !unanswered || known.Local {
			continue // its own replica knows no leader: the others are asked until they do
		}
		if there, others, err := h.askWhere(ctx, shard, h.once); err == nil {
			take(append(others, there)...)
		}
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, shard := range slices.Collect(maps.Keys(open)) {
		asking.Go(func() {
			if there, _, err := h.askWhere(ctx, shard, h.reach); err == nil {
				mu.Lock()
				defer mu.Unlock()
				take(there)
			}
		})
	}
	asking.Wait()
	return found
}

// Leader answers who leads a shard by what is known here, which may be out of date, and only else as Where does. Whoever finds that the peer
// does not lead tells Misled. Errors: those of Get.
func (h *Host) Leader(ctx context.Context, shard uint64) (string, error) {
	if r, here := h.replica(shard); here && h.Leads(shard) && r.ready.Load() {
		return h.cfg.PeerID, nil
	}
	if leader := h.leaderPeer(shard); leader != "" && leader != h.cfg.PeerID {
		return leader, nil
	}
	status, err := h.Where(ctx, shard)
	return status.Leader, err
}

// Misled forgets that the peer leads the shard, if that is only hearsay.
func (h *Host) Misled(shard uint64, peer string) {
	if h.routes.leader(shard) == peer {
		h.routes.unhint(shard)
	}
}

// Leads tells whether a replica of this host leads the shard, as far as it knows.
func (h *Host) Leads(shard uint64) bool {
	report, _ := h.leaders.get(shard)
	r, here := h.replica(shard)
	return here && leads(report) && report.ReplicaID == r.id
}

// reacher runs a request on a shard: Host.reach until it is answered, Host.once one time.
type reacher func(ctx context.Context, shard uint64, local func(context.Context, *replica) error, remote func(context.Context, string) error) error

func (h *Host) once(ctx context.Context, shard uint64, local func(context.Context, *replica) error, remote func(context.Context, string) error) error {
	return h.attempt(ctx, shard, 0, local, remote)
}

// askWhere asks whoever has a replica where the shard's are. others is what a peer that was asked has to say of its other shards.
func (h *Host) askWhere(ctx context.Context, shard uint64, reach reacher) (there ShardStatus, others []ShardStatus, err error) {
	err = reach(ctx, shard,
		func(context.Context, *replica) error {
			if there = h.statusOf(shard); !there.answersWhere() {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return nil
		},
		func(ctx context.Context, peer string) (err error) {
			if there, others, err = h.statusesAt(ctx, peer, shard); err == nil && !there.answersWhere() {
				return &tryAgain{cause: dragonboat.ErrShardNotReady}
			}
			return err
		})
	return there, others, err
}

// completed takes from another peer's status what this host's lacks.
func (s ShardStatus) completed(there ShardStatus) ShardStatus {
	s.Leader, s.Term, s.Members = there.Leader, there.Term, there.Members
	if s.Assigned == nil {
		s.Assigned = there.Assigned
	}
	return s
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
