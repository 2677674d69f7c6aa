package peer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/peer/admin"
	"shoal/placement"
	"shoal/placement/repair"
)

// statusPatience bounds what a status asks other peers.
const statusPatience = time.Second

// status is what this peer knows, also without a quorum.
func (p *Peer) status(ctx context.Context) (*admin.Status, error) {
	s := &admin.Status{
		ClusterID: p.self.Cluster.ID, PeerID: p.self.ID, Name: p.self.Name, Version: p.cfg.Version,
		Address: p.endpoint().String(), Started: p.started,
	}
	p.describePeers(ctx, s)
	p.describeShards(ctx, s)
	if problem := p.clock.problem(); problem != "" {
		s.Problems = append(s.Problems, problem)
	}
	if settings, err := p.localSettings(ctx); err == nil {
		s.Settings = settings
	}
	if p.serving.Load() {
		if err := p.api.Ready(ctx); err != nil {
			s.Problems = append(s.Problems, "the API is not ready: "+firstLine(err))
		} else {
			s.Ready = true
		}
	} else {
		s.Problems = append(s.Problems, "the API is starting")
	}
	s.Problems = append(s.Problems, p.brakes(ctx)...)
	return s, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (p *Peer) localSettings(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	s, _, err := readSettings(ctx, p.host, consensus.Local)
	return map[string]string{settingVoters: strconv.Itoa(s.Voters), settingReplaceAfter: s.ReplaceAfter.String()}, err
}

// describePeers lists the members, and peers on record that gossip has not seen.
func (p *Peer) describePeers(ctx context.Context, s *admin.Status) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	leaving, err := p.leaving(ctx)
	if err != nil {
		leaving = nil // a status answers with what there is
	}
	seen := map[string]bool{}
	for _, member := range p.members.Members() {
		seen[member.PeerID] = true
		s.Peers = append(s.Peers, admin.PeerStatus{
			PeerID: member.PeerID, Name: member.Name, Address: member.Address.String(), Zone: member.Tags.Zone,
			Version: member.Tags.Version, State: member.Status.String(), Leaving: leaving[member.PeerID],
		})
	}
	records, err := listPeers(ctx, p.host)
	if err != nil {
		return
	}
	for id, record := range records {
		if !seen[id] {
			s.Peers = append(s.Peers, admin.PeerStatus{
				PeerID: id, Name: record.Name, Zone: record.Zone, Version: record.Version, State: "not seen", Leaving: leaving[id],
			})
		}
	}
	slices.SortFunc(s.Peers, func(a, b admin.PeerStatus) int { return strings.Compare(a.Name, b.Name) })
}

func (p *Peer) describeShards(ctx context.Context, s *admin.Status) {
	statuses := p.host.Status()
	var all sync.WaitGroup
	for i := range statuses {
		if statuses[i].Members != nil && statuses[i].Leader != "" {
			continue
		}
		// Others know more about a shard without a leader or a replica here.
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statusPatience)
			defer cancel()
			if there, err := p.host.Where(ctx, statuses[i].Shard); err == nil {
				statuses[i] = there
			} else {
				statuses[i].Leader = ""
			}
		})
	}
	alive := map[string]bool{p.self.ID: true}
	var others []string
	for _, id := range p.members.Alive() {
		alive[id] = true
		if id != p.self.ID {
			others = append(others, id)
		}
	}
	var quarantined map[uint64]map[string]string
	all.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, statusPatience)
		defer cancel()
		quarantined = askQuarantined(ctx, others, p.nodes)
	})
	namespaces := p.namespacesPerShard(ctx)
	all.Wait()
	for _, status := range statuses {
		shard := describeShard(status, alive, p.nameFor)
		shard.Namespaces, shard.Quarantined = len(namespaces[status.Shard]), quarantined[status.Shard]
		s.Shards = append(s.Shards, shard)
		s.Problems = append(s.Problems, problemsOf(shard, p.nameFor)...)
	}
}

// problemsOf are the sentences that a shard is worth, if any.
func problemsOf(shard admin.ShardStatus, name func(string) string) []string {
	var problems []string
	say := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf("shard %d"+format, append([]any{shard.Shard}, args...)...))
	}
	switch {
	case shard.Quarantine != "" && shard.Trouble == "":
		say(": the replica here is quarantined: %s", shard.Quarantine)
	case shard.Trouble != "":
		say(": %s", shard.Trouble)
	case shard.Lost:
		say(" has no quorum: %s of its %d voters are missing (if they cannot come back: peer recover)",
			strings.Join(namesOf(shard.Missing, name), ", "), len(shard.Voters))
	case shard.Leader == "":
		say(" has no leader that this peer knows of")
	}
	for _, peer := range slices.Sorted(maps.Keys(shard.Quarantined)) {
		say(": the replica on %s is quarantined: %s", name(peer), shard.Quarantined[peer])
	}
	return problems
}

// describeShard judges one shard. Peers are named by ID but in sentences.
func describeShard(status consensus.ShardStatus, alive map[string]bool, name func(string) string) admin.ShardStatus {
	shard := admin.ShardStatus{
		Shard: status.Shard, Leader: status.Leader, Local: status.Local, Applied: uint64(status.Revision), Trouble: status.Trouble,
		Quarantine: status.Quarantine,
	}
	for _, member := range status.Replicas() {
		if !member.Voter {
			shard.NonVoters = append(shard.NonVoters, member.Peer)
			continue
		}
		shard.Voters = append(shard.Voters, member.Peer)
		if !alive[member.Peer] {
			shard.Missing = append(shard.Missing, member.Peer)
		}
	}
	shard.Lost = status.Leader == "" && len(shard.Voters) > 0 && 2*(len(shard.Voters)-len(shard.Missing)) <= len(shard.Voters)
	shard.Moves = moves(status, name)
	return shard
}

// moves compares what is assigned with what a shard's group is.
func moves(status consensus.ShardStatus, name func(string) string) []string {
	if len(status.Assigned) == 0 || status.Members == nil {
		return nil
	}
	var list []string
	for _, want := range status.Assigned {
		i := slices.IndexFunc(status.Members, func(m consensus.Member) bool { return m.ReplicaID == want.ReplicaID })
		switch {
		case i < 0:
			list = append(list, name(want.Peer)+" gets a copy")
		case want.Voter && !status.Members[i].Voter:
			list = append(list, name(want.Peer)+" catches up, then votes")
		}
	}
	for _, have := range status.Members {
		if !slices.ContainsFunc(status.Assigned, func(m consensus.Member) bool { return m.ReplicaID == have.ReplicaID }) {
			list = append(list, name(have.Peer)+" gives its copy up")
		}
	}
	return list
}

// nameFor is a peer's name, from gossip or its record, or else its ID.
func (p *Peer) nameFor(peerID string) string {
	if peerID == p.self.ID {
		return p.self.Name
	}
	if p.members != nil {
		if name := p.nameOf(peerID); name != "" {
			return name
		}
	}
	if p.host != nil {
		if view, here := p.host.Local(consensus.MetaShard); here {
			if name := recordedName(view, peerID); name != "" {
				return name
			}
		}
	}
	return peerID
}

func namesOf(ids []string, name func(string) string) []string {
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		names = append(names, name(id))
	}
	slices.Sort(names)
	return names
}

// namespacesPerShard lists the namespaces in each shard.
func (p *Peer) namespacesPerShard(ctx context.Context) map[uint64][]string {
	found := map[uint64][]string{}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	list, err := p.host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: registry + "namespaces/"}, consensus.Local)
	if err != nil {
		return found
	}
	for _, kv := range list.KVs {
		name := strings.TrimPrefix(kv.Key, registry+"namespaces/")
		if shard, err := p.directory.Locate(ctx, name); err == nil {
			found[shard] = append(found[shard], name)
		}
	}
	return found
}

// brakes says where pods of lost nodes are not replaced, because too many were lost at once.
func (p *Peer) brakes(ctx context.Context) []string {
	list, err := p.host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: nodePrefix}, consensus.Local)
	if err != nil {
		return nil // that the meta shard cannot be read is said already
	}
	view := placement.NewView()
	for _, kv := range list.KVs {
		if node, err := decode(kv.Value, kv.Mod); err == nil {
			view.Upsert(node)
		}
	}
	var problems []string
	for _, brake := range repair.Brakes(view, repair.Defaults()) {
		problems = append(problems, brake.Reason)
	}
	return problems
}
