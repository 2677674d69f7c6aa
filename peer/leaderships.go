package peer

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"math"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/consensus/bugs"
	"shoal/mesh/membership"
	"shoal/peer/controllers"
	"shoal/placement/repair"
)

// runLeaderships starts what a leader does when this peer comes to lead a shard, and ends it when it does not any more.
func (p *Peer) runLeaderships(ctx context.Context) error {
	duties := &duties{start: p.duty, log: p.log, running: map[uint64]*duty{}}
	defer duties.endAll()
	for {
		select {
		case <-ctx.Done():
			return nil
		case change := <-p.host.Leadership():
			duties.set(ctx, change)
		}
	}
}

// duties are the loops of the shards that this peer leads.
type duties struct {
	start   func(shard uint64) func(ctx context.Context) error
	log     *slog.Logger
	running map[uint64]*duty
}

type duty struct {
	end   context.CancelFunc
	ended chan struct{}
}

// set never waits: a duty that is lost ends in the background, and one that comes back begins when its predecessor has ended.
func (d *duties) set(ctx context.Context, change consensus.Leadership) {
	old := d.running[change.Shard]
	if old != nil {
		// Also for a new term of our own: what was decided in between is not in the old loop's picture.
		old.end()
	}
	if !change.Leader {
		return
	}
	d.log.Debug("leading", "shard", change.Shard, "term", change.Term)
	ctx, cancel := context.WithCancel(ctx)
	next := &duty{end: cancel, ended: make(chan struct{})}
	d.running[change.Shard] = next
	go func() {
		defer close(next.ended)
		if old != nil {
			<-old.ended
		}
		d.repeat(ctx, change.Shard)
	}()
}

// repeat runs a duty until ctx ends.
func (d *duties) repeat(ctx context.Context, shard uint64) {
	run := d.start(shard)
	for ctx.Err() == nil {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("a leader's loop failed and is started anew", "shard", shard, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (d *duties) endAll() {
	var all sync.WaitGroup
	for _, duty := range d.running {
		duty.end()
		all.Go(func() { <-duty.ended })
	}
	all.Wait()
}

// duty is the loop of one shard's leader.
func (p *Peer) duty(shard uint64) func(ctx context.Context) error {
	if shard == consensus.MetaShard {
		return p.leadMeta
	}
	return func(ctx context.Context) error {
		recorders, end, err := p.recorders(ctx)
		if err != nil {
			return err
		}
		defer end()
		loop := &leader{
			shard: shard, host: p.host, commit: p.committer(), rooms: p.rooms(shard), events: newEvents(recorders), repair: repairOptions(),
			asks: make(chan func()), log: p.log,
		}
		defer p.leading.set(shard, loop)()
		return loop.Run(ctx)
	}
}

func (p *Peer) leadMeta(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1)
	go func() {
		for range p.members.Subscribe(ctx) {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	var upstream sync.WaitGroup
	upstream.Go(func() { p.runControllers(ctx) })
	upstream.Go(func() {
		err := retry(ctx, p.log, "make the default storage class", p.defaultStorageClass)
		if err != nil && ctx.Err() == nil {
			p.log.Warn("the default storage class could not be made", "error", err)
		}
	})
	defer upstream.Wait()
	defer cancel()
	recorders, end, err := p.recorders(ctx)
	if err != nil {
		return err
	}
	defer end()
	return (&meta{
		host: p.host, commit: p.committer(), renewals: p.renewals, repair: repairOptions(), failed: p.failedNodes,
		advertise: p.api.SetKubernetesEndpoints, forget: p.forgetGone, events: newEvents(recorders), log: p.log,
		shards: &shardKeeper{
			host: p.host, members: p.members.Members, changed: changed, log: p.log,
			quarantined: func(member membership.Member) []uint64 { return p.renewals.quarantined(member.Name) },
		},
	}).Run(ctx)
}

// runControllers runs upstream's controllers, which decide nothing about where pods run, for as long as this peer leads the meta shard.
func (p *Peer) runControllers(ctx context.Context) {
	for {
		err := p.api.WaitReady(ctx)
		if err == nil {
			err = controllers.Run(ctx, p.controllersConfig())
		}
		if ctx.Err() != nil {
			return
		}
		p.log.Error("the controllers ended and are started anew", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (p *Peer) controllersConfig() controllers.Config {
	cluster := p.self.Cluster
	return controllers.Config{
		Loopback: p.api.Loopback(), LoopbackAs: p.api.LoopbackAs, ProvidePods: p.api.Pods().Provide, NodePorts: p.api.NodePorts(), RootCA: cluster.CAPEM(),
		ServiceAccountKey: cluster.ServiceAccountKey,
		SigningCA:         func() (*x509.Certificate, crypto.Signer, error) { return cluster.CA, cluster.CAKey(), nil },
		Logger:            p.log,
	}
}

// failedNodes are the names of the nodes whose peers gossip has given up on.
func (p *Peer) failedNodes() map[string]bool {
	failed := map[string]bool{}
	for _, member := range p.members.Members() {
		if member.Status != membership.Alive {
			failed[member.Name] = true
		}
	}
	return failed
}

// repairOptions are how nodes are judged and evictions held back.
func repairOptions() repair.Options {
	options := repair.Defaults()
	if bugs.On(bugs.NoBrake) {
		options.BrakeNodes = math.MaxInt
	}
	return options
}
