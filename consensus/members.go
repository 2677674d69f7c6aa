package consensus

import (
	"context"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"
)

// membership is a raft group's membership.
type membership struct {
	// Change is the log index of the last change; the next one names it, so that two
	// leaders cannot both change the same membership.
	Change    uint64
	Voters    map[uint64]string
	NonVoters map[uint64]string
	Removed   []uint64
}

func (m membership) removed(replica uint64) bool { return slices.Contains(m.Removed, replica) }

func (m membership) members() []Member {
	var all []Member
	for id, peer := range m.Voters {
		all = append(all, Member{Peer: peer, ReplicaID: id, Voter: true})
	}
	for id, peer := range m.NonVoters {
		all = append(all, Member{Peer: peer, ReplicaID: id})
	}
	slices.SortFunc(all, func(a, b Member) int { return int(a.ReplicaID) - int(b.ReplicaID) })
	return all
}

// voters maps the group's voting replicas to their peers, as they were last read.
func (r *replica) voters() map[uint64]string {
	if m := r.members.Load(); m != nil {
		return m.Voters
	}
	return nil
}

// ownerOf is the peer that holds a replica of a shard that is here too, "" if that is
// not known.
func (h *Host) ownerOf(shard, replica uint64) string {
	r, here := h.replica(shard)
	if !here {
		return ""
	}
	m := r.members.Load()
	if m == nil {
		return ""
	}
	if peer, votes := m.Voters[replica]; votes {
		return peer
	}
	return m.NonVoters[replica]
}

// readMembership asks the group itself, with a quorum.
func (h *Host) readMembership(ctx context.Context, r *replica) (membership, error) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	m, err := inRaft(h, func() (*dragonboat.Membership, error) { return h.nh.SyncGetShardMembership(ctx, r.shard) })
	if err != nil {
		return membership{}, err
	}
	out := membership{Change: m.ConfigChangeID, Voters: m.Nodes, NonVoters: m.NonVotings}
	for id := range m.Removed {
		out.Removed = append(out.Removed, id)
	}
	slices.Sort(out.Removed)
	r.members.Store(&out)
	return out, nil
}

// followMembers keeps the replica's picture of its group: raft says that it changed,
// not how.
func (h *Host) followMembers(ctx context.Context, r *replica) {
	for {
		pause := time.Hour
		if _, err := h.readMembership(ctx, r); err != nil {
			pause = readAttempt
		}
		select {
		case <-ctx.Done():
			return
		case <-r.regrouped:
		case <-time.After(pause):
		}
	}
}

// raftEvents takes dragonboat's reports on the host's replicas. Only changes of
// membership matter to us.
type raftEvents struct{ host *Host }

func (e raftEvents) MembershipChanged(info raftio.NodeInfo) {
	if r, ok := e.host.replica(info.ShardID); ok {
		select {
		case r.regrouped <- struct{}{}:
		default:
		}
	}
	e.host.changed.broadcast()
}

func (raftEvents) NodeHostShuttingDown()                       {}
func (raftEvents) NodeUnloaded(raftio.NodeInfo)                {}
func (raftEvents) NodeDeleted(raftio.NodeInfo)                 {}
func (raftEvents) NodeReady(raftio.NodeInfo)                   {}
func (raftEvents) ConnectionEstablished(raftio.ConnectionInfo) {}
func (raftEvents) ConnectionFailed(raftio.ConnectionInfo)      {}
func (raftEvents) SendSnapshotStarted(raftio.SnapshotInfo)     {}
func (raftEvents) SendSnapshotCompleted(raftio.SnapshotInfo)   {}
func (raftEvents) SendSnapshotAborted(raftio.SnapshotInfo)     {}
func (raftEvents) SnapshotReceived(raftio.SnapshotInfo)        {}
func (raftEvents) SnapshotRecovered(raftio.SnapshotInfo)       {}
func (raftEvents) SnapshotCreated(raftio.SnapshotInfo)         {}
func (raftEvents) SnapshotCompacted(raftio.SnapshotInfo)       {}
func (raftEvents) LogCompacted(raftio.EntryInfo)               {}
func (raftEvents) LogDBCompacted(raftio.EntryInfo)             {}
