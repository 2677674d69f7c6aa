package peer

import (
	"context"
	"errors"
	"strings"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/mesh/membership"
	"shoal/placement/shards"
)

const (
	// balanceInterval is how often a peer looks whether it leads more shards than its share.
	balanceInterval = 5 * time.Second
	// startPatience is how long a peer that is being started may lead shards without doing what a leader does. The others' leases run out
	// meanwhile if it leads the meta shard (fenceAfter).
	startPatience = 3 * time.Second
	// transferTimeout bounds one handing over.
	transferTimeout = 5 * time.Second
	// pressedRecords mark peers that should lead nothing for a while: peer ID → why. They expire by themselves, and later than a
	// pressure is looked at again, so that leaders do not go back and forth with it.
	pressedRecords = "/shoal/pressed/"
	pressedFor     = time.Minute
	// offFor is pressedFor of a clock that is off. It is measured all the time, and when it is right its peer may be needed: a second one
	// that goes wrong hands over to nobody who should lead nothing.
	offFor = 15 * time.Second
)

// runBalance looks after this peer's share of leaderships until ctx ends. It stands apart from runLeaderships, because handing over takes
// its time and a duty that was lost must end at once: two meta leaders would contradict each other about which nodes are alive.
func (p *Peer) runBalance(ctx context.Context) error {
	told, down, leaders := map[string]time.Time{}, map[string]time.Time{}, &shards.Leaders{}
	for {
		interval := balanceInterval
		if !p.serving.Load() {
			interval = startPatience
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.clock.wentOff:
		case <-time.After(interval):
		}
		for peer, why := range p.pressed(ctx) {
			if time.Now().Before(told[peer]) {
				continue
			}
			p.log.Warn("a peer should lead nothing for a while", "peer", p.nameFor(peer), "reason", why.words, "for", why.lasts)
			if err := p.tellPressure(ctx, peer, why); err == nil {
				told[peer] = time.Now().Add(why.lasts / 2)
			}
		}
		p.balance(ctx, leaders, down)
	}
}

// pressure is why a peer should lead nothing, and for how long when it is not said again.
type pressure struct {
	words string
	lasts time.Duration
}

// pressed are the peers of which this one has to say that they should lead nothing, with the reason: itself, when it is under pressure,
// and from the meta leader those whose clocks are off, because they cannot write it down themselves.
func (p *Peer) pressed(ctx context.Context) map[string]pressure {
	pressed := map[string]pressure{}
	if p.clock.problem() != "" || !p.serving.Load() {
		return pressed
	}
	if why := p.short(ctx); why != "" {
		pressed[p.self.ID] = pressure{why, pressedFor}
	}
	if !p.leadsMeta() {
		return pressed
	}
	off := p.renewals.off(p.renewals.wall.moment())
	for _, member := range p.members.Members() {
		if err := off[member.Name]; err != nil {
			pressed[member.PeerID] = pressure{"its clock is " + err.Error(), offFor}
		}
	}
	return pressed
}

// short says what this peer's host is short of; "" is nothing.
func (p *Peer) short(ctx context.Context) string {
	now, err := p.node.stats.Pressure(ctx)
	switch {
	case err != nil:
		return ""
	case now.Memory:
		return "memory is short"
	case now.Disk:
		return "disk space is short"
	default:
		return ""
	}
}

func (p *Peer) tellPressure(ctx context.Context, peer string, why pressure) error {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	_, err := p.host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: []store.Op{{
		Key: pressedRecords + peer, Value: []byte(why.words), Expires: p.clock.now().Add(why.lasts).UnixMilli(),
	}}})
	return err
}

// unfit are the peers that should lead nothing: those that leave, that restart in a moment, and that are under pressure. By peer ID.
func (p *Peer) unfit(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	unfit, err := p.leaving(ctx)
	if err != nil {
		return nil, err
	}
	pressed, err := recordedUnder(ctx, p.host, pressedRecords, p.clock.now())
	if err != nil {
		return nil, err
	}
	for id := range pressed {
		unfit[id] = true
	}
	if p.clock.problem() != "" || !p.serving.Load() {
		unfit[p.self.ID] = true // as a leader it would do nothing
	}
	back, err := restarting(ctx, p.host, p.clock.now())
	if err != nil {
		return nil, err
	}
	for _, member := range p.members.Members() {
		if back[member.Name] {
			unfit[member.PeerID] = true
		}
	}
	return unfit, nil
}

// leaving are the peers that give up what they hold, by peer ID.
func (p *Peer) leaving(ctx context.Context) (map[string]bool, error) {
	return recordedUnder(ctx, p.host, leavingPrefix, p.clock.now())
}

// recordedUnder reads which keys exist under a prefix, without it. What has expired at now does not count.
func recordedUnder(ctx context.Context, host *consensus.Host, prefix string, now time.Time) (map[string]bool, error) {
	list, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: prefix}, consensus.Local)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, kv := range list.KVs {
		if kv.Expires == 0 || kv.Expires > now.UnixMilli() {
			found[strings.TrimPrefix(kv.Key, prefix)] = true
		}
	}
	return found, nil
}

// balance hands leaderships over that other peers should have. Every peer plans for all and acts only on its own, so nobody has to
// be asked. down notes since when others have been lost.
func (p *Peer) balance(ctx context.Context, leaders *shards.Leaders, down map[string]time.Time) {
	unfit, err := p.unfit(ctx)
	if err != nil {
		return // without the meta shard it is not known who may lead
	}
	now := time.Now()
	var peers []shards.Peer
	for _, member := range p.members.Members() {
		if member.Status == membership.Alive {
			delete(down, member.PeerID)
		} else if down[member.PeerID].IsZero() {
			down[member.PeerID] = now
		}
		peers = append(peers, shards.Peer{
			ID: member.PeerID, Zone: member.Tags.Zone, Weight: 1, Leaves: unfit[member.PeerID], Down: down[member.PeerID],
		})
	}
	for _, transfer := range leaders.Due(peers, p.leaders(ctx), now) {
		if transfer.From != p.self.ID {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, transferTimeout)
		err := p.host.TransferLeadership(ctx, transfer.Shard, transfer.To)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			p.log.Debug("a leadership was not handed over yet", "shard", transfer.Shard, "to", transfer.To, "error", err)
		}
	}
}

// leaders are all shards with who leads them and who could. Of shards without a replica here, others are asked.
func (p *Peer) leaders(ctx context.Context) []shards.Assignment {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	var current []shards.Assignment
	for _, status := range p.host.WhereAll(ctx) {
		assignment := shards.Assignment{Shard: status.Shard, Leader: status.Leader}
		for _, member := range status.Replicas() {
			assignment.Replicas = append(assignment.Replicas, shards.Replica{Peer: member.Peer, Voter: member.Voter})
		}
		current = append(current, assignment)
	}
	return current
}

// stepDown hands everything over that this peer leads, while it still serves: a planned stop is then not noticed. The others are told
// that it will be back, and that it is not to lead until then.
func (p *Peer) stepDown() {
	if !p.serving.Load() || p.gone.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	p.announce(ctx)
	p.host.HandOver(ctx)
}
