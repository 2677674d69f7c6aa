package consensus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"shoal/consensus/store"
)

// probeTicks is how long a shard is given to answer before it counts as lost, in raft
// ticks: several elections, 3 s by default.
const probeTicks = 60

// Copy is one peer's copy of a shard, as it is on that peer now.
type Copy struct {
	Peer      string
	ReplicaID uint64
	Voter     bool
	// Revision is the newest change that the copy shows. Its Time is when that was
	// written.
	Revision store.Revision
	// LastTerm and LastIndex are the end of its raft log. Of two copies, the one with
	// the higher pair has everything of the other that was ever confirmed.
	LastTerm, LastIndex uint64
	// LeaderSeen is when the copy last had a leader, in unix milliseconds; 0 is not
	// since its peer started.
	LeaderSeen int64
	// Members is the shard's group, as the copy has it.
	Members []Member
}

// fresher orders copies, the best to recover from first.
func fresher(a, b Copy) int {
	return cmp.Or(
		-cmp.Compare(a.LastTerm, b.LastTerm), -cmp.Compare(a.LastIndex, b.LastIndex),
		-cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Peer, b.Peer),
	)
}

// Loss is a shard without quorum.
type Loss struct {
	Shard uint64
	// Voters are its voting members, Missing the peers of those that do not answer.
	Voters  []Member
	Missing []string
	// Copies are the copies within reach, the best first. Without any, only a backup
	// helps.
	Copies []Copy
}

// Final says that the voters within reach are no majority: without those missing, the
// shard stays as it is until it is recovered.
func (l Loss) Final() bool { return 2*(len(l.Voters)-len(l.Missing)) <= len(l.Voters) }

// Losses finds the shards that have no quorum now, in order of their numbers.
func (h *Host) Losses(ctx context.Context) ([]Loss, error) {
	shards := h.Shards()
	losses := make([]*Loss, len(shards))
	var all sync.WaitGroup
	for i, shard := range shards {
		all.Go(func() {
			probe, cancel := context.WithTimeout(ctx, probeTicks*h.cfg.RTT)
			defer cancel()
			if _, _, _, err := h.Get(probe, shard, "", Linearizable); err != nil {
				losses[i] = h.inspect(ctx, shard)
			}
		})
	}
	all.Wait()
	var found []Loss
	for _, loss := range losses {
		if loss != nil {
			found = append(found, *loss)
		}
	}
	return found, ctx.Err()
}

// inspect collects what is left of a shard.
func (h *Host) inspect(ctx context.Context, shard uint64) *Loss {
	loss := &Loss{Shard: shard}
	if own, err := h.copyHere(shard); err == nil {
		loss.Copies = append(loss.Copies, own)
	}
	for _, peer := range h.cfg.Peers() {
		if peer == h.cfg.PeerID {
			continue
		}
		if there, err := h.copyAt(ctx, peer, shard); err == nil {
			loss.Copies = append(loss.Copies, there)
		}
	}
	slices.SortFunc(loss.Copies, fresher)
	members := h.statusOf(shard).Replicas()
	if len(loss.Copies) > 0 && len(loss.Copies[0].Members) > 0 {
		members = loss.Copies[0].Members
	}
	for _, m := range members {
		if !m.Voter {
			continue
		}
		loss.Voters = append(loss.Voters, m)
		if !slices.ContainsFunc(loss.Copies, func(c Copy) bool { return c.ReplicaID == m.ReplicaID }) {
			loss.Missing = append(loss.Missing, m.Peer)
		}
	}
	return loss
}

// copyHere describes the local copy. A copy that holds nothing yet, or has not read
// its log, is none. Error: errNoReplica.
func (h *Host) copyHere(shard uint64) (Copy, error) {
	r, here := h.replica(shard)
	view, ready := store.View{}, false
	if here {
		view, ready = r.view()
	}
	if !ready || view.Revision() == 0 {
		return Copy{}, errNoReplica
	}
	c := Copy{Peer: h.cfg.PeerID, ReplicaID: r.id, LeaderSeen: h.leaders.seen(shard), Revision: view.Revision()}
	log, err := h.nh.GetLogReader(shard)
	if err != nil {
		return Copy{}, err
	}
	_, c.LastIndex = log.GetRange()
	if c.LastTerm, err = log.Term(c.LastIndex); err != nil {
		return Copy{}, err
	}
	for _, info := range h.shardInfos() {
		if info.ShardID != shard || info.Pending {
			continue
		}
		c.Voter = !info.IsNonVoting
		// The group's voters are known here also when nobody can confirm them.
		for id, peer := range info.Replicas {
			c.Members = append(c.Members, Member{Peer: peer, ReplicaID: id, Voter: true})
		}
	}
	slices.SortFunc(c.Members, func(a, b Member) int { return cmp.Compare(a.ReplicaID, b.ReplicaID) })
	return c, nil
}

func (h *Host) copyAt(ctx context.Context, peer string, shard uint64) (Copy, error) {
	a, err := h.ask(ctx, peer, call{Verb: verbCopy, Shard: shard}, readAttempt)
	if err != nil {
		return Copy{}, err
	}
	if a.Copy == nil || a.Copy.Peer != peer {
		return Copy{}, errors.New("the answer describes no copy of that peer")
	}
	return *a.Copy, nil
}
