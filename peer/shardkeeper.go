package peer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"shoal/consensus"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/mesh/membership"
	"shoal/placement/shards"
)

// shardKeeper keeps the assignment of shards to peers as placement/shards wants it. It runs on the meta leader and only writes the
// wanted assignment down; each shard's own leader carries it out (consensus).
type shardKeeper struct {
	host    *consensus.Host
	members func() []membership.Member
	changed <-chan struct{} // a membership change: look at once
	// quarantined are the shards whose replica on a peer that lives is left stopped.
	quarantined func(member membership.Member) []uint64
	log         *slog.Logger

	down   map[string]time.Time
	broken map[shardOn]time.Time
}

// shardOn is one shard's replica on one peer.
type shardOn struct {
	shard uint64
	peer  string
}

// keepInterval is how often assignments are looked at when nothing happens.
const keepInterval = time.Second

// leavingPrefix marks peers that are on their way out: they give up their replicas and get no new ones.
const leavingPrefix = "/shoal/leaving/"

// Run keeps assignments until ctx ends.
func (k *shardKeeper) Run(ctx context.Context) error {
	k.down, k.broken = map[string]time.Time{}, map[shardOn]time.Time{}
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		if err := k.keep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			k.log.Warn("shard assignments could not be looked after", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-ticker.C:
		}
	}
}

func (k *shardKeeper) keep(ctx context.Context, now time.Time) error {
	peers, err := k.peers(ctx, now)
	if err != nil {
		return err
	}
	k.lookForBroken(now)
	current, records, err := k.assignments(ctx)
	if err != nil {
		return err
	}
	var failed []error
	wanted, _, err := readSettings(ctx, k.host, consensus.Local)
	if err != nil {
		return err
	}
	options := shards.Options{Voters: wanted.Voters, Hysteresis: wanted.ReplaceAfter}
	for _, step := range shards.Plan(peers, current, options, now) {
		if err := k.write(ctx, records[step.Shard], step); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// peers joins what is written down about peers with what gossip says of them.
func (k *shardKeeper) peers(ctx context.Context, now time.Time) ([]shards.Peer, error) {
	records, err := listPeers(ctx, k.host)
	if err != nil {
		return nil, err
	}
	leaves, err := recordedUnder(ctx, k.host, leavingPrefix, now)
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for _, member := range k.members() {
		alive[member.PeerID] = member.Status == membership.Alive
	}
	var peers []shards.Peer
	for id, record := range records {
		if alive[id] {
			delete(k.down, id)
		} else if _, known := k.down[id]; !known {
			k.down[id] = now
		}
		peers = append(peers, shards.Peer{ID: id, Zone: record.Zone, Weight: 1, Down: k.down[id], Leaves: leaves[id]})
	}
	return peers, nil
}

// lookForBroken notes since when replicas have been quarantined. Usually such a replica is replaced on its own peer before anybody else
// has to do something about it.
func (k *shardKeeper) lookForBroken(now time.Time) {
	broken := map[shardOn]time.Time{}
	for _, member := range k.members() {
		if member.Status != membership.Alive {
			continue // replaced for being dead
		}
		for _, shard := range k.quarantined(member) {
			on := shardOn{shard, member.PeerID}
			broken[on] = now
			if since, known := k.broken[on]; known {
				broken[on] = since
			}
		}
	}
	k.broken = broken
}

type assignmentRecord struct {
	assignment shardmap.Assignment
	revision   store.Revision
	group      shardmap.Members // as far as known
}

// assignments reads what is assigned and compares it with what each raft group is.
func (k *shardKeeper) assignments(ctx context.Context) ([]shards.Assignment, map[uint64]assignmentRecord, error) {
	list, err := k.host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: shardmap.Prefix}, consensus.Local)
	if err != nil {
		return nil, nil, err
	}
	records, where := map[uint64]assignmentRecord{}, k.host.WhereAll(ctx)
	var current []shards.Assignment
	for _, kv := range list.KVs {
		assignment, err := shardmap.Decode(kv.Key, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		entry := shards.Assignment{Shard: assignment.Shard, Broken: map[string]time.Time{}, Busy: true}
		for _, replica := range assignment.Replicas {
			entry.Replicas = append(entry.Replicas, shards.Replica{Peer: replica.Peer, Voter: replica.Voter})
		}
		for on, since := range k.broken {
			if on.shard == assignment.Shard {
				entry.Broken[on.peer] = since
			}
		}
		record := assignmentRecord{assignment: assignment, revision: kv.Mod}
		if status, answered := where[assignment.Shard]; answered {
			record.group = groupOf(status.Members)
			entry.Leader, entry.Busy = status.Leader, !assignment.SettledIn(record.group)
			entry.Group = &shards.Group{
				Voters: slices.Collect(maps.Values(record.group.Voters)), Pending: assignment.Pending(record.group),
			}
		}
		records[assignment.Shard] = record
		current = append(current, entry)
	}
	return current, records, nil
}

// groupOf sorts a raft group's members by what they may do.
func groupOf(members []consensus.Member) shardmap.Members {
	group := shardmap.Members{Voters: map[uint64]string{}, NonVoters: map[uint64]string{}}
	for _, member := range members {
		if member.Voter {
			group.Voters[member.ReplicaID] = member.Peer
		} else {
			group.NonVoters[member.ReplicaID] = member.Peer
		}
	}
	return group
}

func (k *shardKeeper) write(ctx context.Context, record assignmentRecord, step shards.Step) error {
	want := make([]shardmap.Want, 0, len(step.Want))
	for _, replica := range step.Want {
		want = append(want, shardmap.Want{Peer: replica.Peer, Voter: replica.Voter})
	}
	next := record.assignment.Place(want, record.group)
	key := shardmap.Key(step.Shard)
	result, err := k.host.Propose(ctx, consensus.MetaShard, store.Transaction{
		Conditions: []store.Condition{{Key: key, Revision: record.revision}},
		Ops:        []store.Op{{Key: key, Value: next.Encode()}},
	})
	if err == nil && result.OK {
		k.log.Info("shard reassigned", "shard", step.Shard, "reason", step.Reason, "replicas", len(want))
	}
	// A failed condition means that somebody else changed it: the next look sees that.
	return err
}
