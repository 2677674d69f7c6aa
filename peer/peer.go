// Package peer is one peer: it wires consensus, placement, runtime and mesh together and serves the Kubernetes API over them.
//
// It is the only package that knows all four. What is decided, is decided below it in pure packages; what is done, is done by the
// packages' own adapters; here stand the loops that carry values from one to the other. Which loop runs where:
//
//	on every peer           node.go (pods), dataplane.go (tunnel, virtual IPs, DNS), link, gossip, the API
//	on a shard's leader     leader.go, place.go (workloads, scheduling, endpoints, evictions)
//	on the meta leader      meta.go (which nodes are alive), shardkeeper.go (who holds which replica), controllers
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/mesh/membership"
	"shoal/peer/admin"
	"shoal/peer/api"
	"shoal/peer/api/storage"
	"shoal/peer/identity"
	"shoal/peer/lease"
	"shoal/peer/link"
)

// shutdownTimeout bounds how long a peer hands over before it ends.
const shutdownTimeout = 10 * time.Second

// Peer is a peer that runs or is about to.
type Peer struct {
	cfg       Config
	log       *slog.Logger
	start     Start
	started   time.Time
	self      *identity.Peer
	advertise netip.Addr
	seeds     []string

	link      *link.Link
	members   *membership.Membership
	host      *consensus.Host
	api       *api.Server
	node      *node
	directory *storage.Directory
	renewals  *renewals
	clock     *clock
	left      left
	nodes     *nodeClient
	leading   leading
	shutDown  context.CancelFunc // ends the peer as its caller's ctx does: it hands over first
	leave     context.CancelFunc // ends it at once
	serving   atomic.Bool        // node and API are there
	gone      atomic.Bool        // left the cluster
	again     atomic.Bool        // to be started anew
}

// ErrRestart is what Run returns when the peer has ended in order to be started anew with the same arguments: a recovery of shards is
// carried out at the start.
var ErrRestart = errors.New("the peer is to be started again")

// Run founds, joins or resumes, as the data folder and the addresses say, and serves until ctx ends. It returns nil after an orderly
// shutdown, and otherwise one sentence for the user.
func Run(ctx context.Context, cfg Config) error {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	// One process per data folder, before anything in it is touched.
	socket, err := cfg.openAdmin()
	if err != nil {
		return err
	}
	defer socket.Close()
	p := &Peer{cfg: cfg, log: cfg.Logger, started: time.Now(), renewals: &renewals{wall: cfg.Machine.Now}, clock: newClock(cfg.Machine.Now)}
	if err := p.identify(ctx); err != nil {
		return err
	}
	return p.run(ctx, socket)
}

// run keeps two circles: the inner one, made of everything that decides and serves, ends first and leaves the store and the port to the
// outer one. Before either ends, leadership is handed over.
func (p *Peer) run(ctx context.Context, socket net.Listener) error {
	asked, shutDown := context.WithCancel(ctx)
	defer shutDown()
	p.shutDown = shutDown
	ctx, p.leave = context.WithCancel(context.WithoutCancel(asked))
	defer p.leave()
	defer context.AfterFunc(asked, func() {
		p.stepDown()
		p.leave()
	})()
	outer, endOuter := context.WithCancel(context.WithoutCancel(ctx))
	defer endOuter()
	base, outer := errgroup.WithContext(outer)

	err := p.open(outer, base)
	if err == nil {
		inner, innerCtx := errgroup.WithContext(ctx)
		stop := context.AfterFunc(outer, func() { p.leave() }) // what the inner circle stands on has failed
		err = p.serve(innerCtx, inner, socket)
		if err != nil {
			p.leave()
		}
		err = errors.Join(err, inner.Wait())
		stop()
	}
	err = errors.Join(err, p.close())
	endOuter()
	err = errors.Join(err, base.Wait())
	switch {
	case err == nil && p.gone.Load():
		return p.cfg.forget()
	case err == nil && p.again.Load():
		return ErrRestart
	}
	return err
}

// open brings up what everything else stands on: port, gossip and store.
func (p *Peer) open(ctx context.Context, group *errgroup.Group) error {
	if err := p.openLink(ctx, group); err != nil {
		return err
	}
	if err := p.openMembership(ctx); err != nil {
		return err
	}
	if err := p.openStore(ctx); err != nil {
		return err
	}
	group.Go(func() error { return p.host.Failed(ctx) })
	return nil
}

func (p *Peer) openLink(ctx context.Context, group *errgroup.Group) error {
	var err error
	p.link, err = link.Open(link.Config{
		Identity: p.self, Listen: p.cfg.Listen, Port: p.cfg.Port, Resolve: p.resolve, Refuse: p.left.refuse, Logger: p.log,
		OpenPort: p.cfg.Machine.Listen, Connect: p.cfg.Machine.Dial,
	})
	if err != nil {
		return err
	}
	p.nodes = newNodeClient(p.link.Dial)
	group.Go(func() error { return p.link.Run(ctx) })
	group.Go(func() error { return p.self.Run(ctx, p.log) })
	return nil
}

// resolve finds a peer's address by gossip.
func (p *Peer) resolve(peerID string) (string, error) {
	if p.members != nil {
		if address, ok := p.members.Address(peerID); ok {
			return address.String(), nil
		}
	}
	return "", fmt.Errorf("peer %s is not known to gossip", peerID)
}

// openStore opens the replicas. A founder that was interrupted takes founding up again.
func (p *Peer) openStore(ctx context.Context) error {
	host, err := consensus.Open(ctx, consensus.Config{
		PeerID: p.self.ID, ClusterID: p.self.Cluster.ID, Dir: p.cfg.StoreDir(),
		Listen: p.link.Listen, Dial: p.link.Dial, Peers: p.members.Alive, PeerName: p.nameFor, Offset: p.clock.ahead, Now: p.cfg.Machine.Now,
		Elapsed: p.cfg.Machine.Elapsed, NoReadLeases: p.cfg.NoReadLeases,
		History: store.Limits{Bytes: p.cfg.HistoryBytes, Age: p.cfg.HistoryAge},
		FS:      p.cfg.Machine.StoreFS, Frugal: p.cfg.Machine.Frugal, Logger: p.log,
	})
	if errors.Is(err, consensus.ErrDamaged) {
		return fmt.Errorf("%w: nothing was changed; where other peers hold copies of its shards, move %s away and start the peer again, and it gets them from there; the only peer of a cluster needs a backup (`peer restore`)",
			err, p.cfg.StoreDir())
	}
	if err != nil {
		return err
	}
	p.host, p.directory = host, storage.NewDirectory(host)
	// Until the lease is renewed, which takes a leader of the meta shard.
	if ahead, known := host.ClockAhead(ctx); known {
		p.clock.note(lease.Verdict{Ahead: ahead, Clocks: 2}, p.clock.wall.moment()) // at least one other's, and this one's
		p.clock.report(p.log)
	}
	return p.foundStore(ctx)
}

// close hands leadership over and ends store, gossip and port, in this order: the store needs the other two.
func (p *Peer) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	var failed []error
	if p.host != nil {
		failed = append(failed, p.host.Shutdown(ctx))
	}
	if p.members != nil {
		failed = append(failed, p.members.Shutdown())
	}
	if p.link != nil {
		p.link.Close()
	}
	return errors.Join(failed...)
}

// announce says that this peer will be back. Without a quorum nobody judges its node either.
func (p *Peer) announce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	begun := time.Now()
	err := announceRestart(ctx, p.host, p.self.Name)
	if err == nil {
		// What must not run twice may run as long as this peer is waited for.
		err = p.node.watchdog.restart(begun.Add(restartPatience))
	}
	if err != nil {
		p.log.Warn("the restart could not be announced: pods here may be replaced", "error", err)
	}
}

// serve starts everything else and returns when all of it has been started. What it starts ends with ctx.
func (p *Peer) serve(ctx context.Context, group *errgroup.Group, socket net.Listener) error {
	group.Go(func() error { return admin.Run(ctx, socket, p.calls(), p.log) })
	group.Go(func() error { return p.runBalance(ctx) })
	if err := p.register(ctx, group); err != nil {
		return err
	}
	node, err := p.openNode(ctx)
	if err != nil {
		return err
	}
	p.node = node
	if observe := p.cfg.Machine.Observe; observe != nil {
		observe(Inside{PeerID: p.self.ID, Store: p.host, Claims: node.ledger.Held})
	}
	if err := p.writeKubeconfig(); err != nil {
		return fmt.Errorf("writing the administrator's kubeconfig: %w", err)
	}
	if err := p.serveAPI(ctx, group); err != nil {
		return err
	}
	p.serving.Store(true)
	group.Go(func() error { return p.serveNode(ctx) })
	group.Go(func() error { return p.serveJoin(ctx) })
	group.Go(func() error { return node.Run(ctx) })
	group.Go(func() error { return p.runDataPlane(ctx) })
	group.Go(func() error { return p.runLeaderships(ctx) })
	group.Go(func() error { return p.keepFiles(ctx) })
	group.Go(func() error { return p.leaveLost(ctx) })
	group.Go(func() error { return p.watchDisk(ctx) })
	group.Go(func() error { return p.left.Run(ctx, p.host) })
	group.Go(func() error { return p.welcome(ctx) })
	return nil
}

// register writes this peer down. A founder does it here, a joiner was written down by the peer that let it in, and both keep the
// record up to date: address, version and zone may change between two starts.
//
// One whose clock is far off may not write. If it is on record all the same, it does the rest: its pods must not suffer for its clock.
func (p *Peer) register(ctx context.Context, group *errgroup.Group) error {
	write := func(ctx context.Context) error {
		return registerPeer(ctx, p.host, p.alive, identity.PeerRecord{
			PeerID: p.self.ID, Name: p.self.Name, Version: p.cfg.Version, Zone: p.cfg.Zone,
			WireGuard: p.self.WireGuard.Public(), Addresses: []netip.Addr{p.advertise}, Port: p.cfg.Port, Joined: p.started,
		})
	}
	err := retry(ctx, p.log, "write this peer down", func(ctx context.Context) error {
		err := write(ctx)
		if errors.Is(err, consensus.ErrClockSkew) && p.onRecord(ctx) {
			group.Go(func() error {
				if err := retry(ctx, p.log, "write this peer down", write); err != nil && ctx.Err() == nil {
					return err
				}
				return nil
			})
			return nil
		}
		return err
	})
	if errors.Is(err, errNameTaken) {
		return fmt.Errorf("%w: choose another with --name", err)
	}
	return err
}

// onRecord tells whether this peer is written down under its name, as it was or as it is.
func (p *Peer) onRecord(ctx context.Context) bool {
	owner, found, _, err := p.host.Get(ctx, consensus.MetaShard, nameRecords+p.self.Name, consensus.Linearizable)
	return err == nil && found && string(owner.Value) == p.self.ID
}

// retry does something that a shard without quorum may delay, until it works, ctx ends, or trying again is of no use.
func retry(ctx context.Context, log *slog.Logger, what string, try func(context.Context) error) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := try(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, errNameTaken) || errors.Is(err, errNoRange) {
			return err
		}
		log.Info("waiting to "+what, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// endpoint is where the other peers and the host's clients reach the API.
func (p *Peer) endpoint() netip.AddrPort { return netip.AddrPortFrom(p.advertise, uint16(p.cfg.Port)) }

// writeKubeconfig keeps the administrator's kubeconfig in the data folder.
func (p *Peer) writeKubeconfig() error {
	endpoints := []identity.Endpoint{{Name: p.self.Name, Address: p.endpoint().String()}}
	for _, member := range p.members.Members() {
		if member.PeerID != p.self.ID && member.Status == membership.Alive {
			endpoints = append(endpoints, identity.Endpoint{Name: member.Name, Address: member.Address.String()})
		}
	}
	text, err := p.self.Cluster.Kubeconfig(time.Now(), endpoints)
	if err != nil {
		return err
	}
	temporary := p.cfg.KubeconfigPath() + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, p.cfg.KubeconfigPath())
}

// leaveLost tells the store of peers that gossip has given up.
func (p *Peer) leaveLost(ctx context.Context) error {
	for change := range p.members.Subscribe(ctx) {
		if change.Kind == membership.EventFailed {
			p.host.Lost(change.Member.PeerID)
		}
	}
	return nil
}

// keepFiles writes down, whenever the members change, where the other peers are: for the administrator and for the next start.
func (p *Peer) keepFiles(ctx context.Context) error {
	changes := p.members.Subscribe(ctx)
	for {
		if err := errors.Join(p.writeKubeconfig(), p.saveSeeds()); err != nil {
			p.log.Error("kubeconfig and peer addresses could not be written down", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-changes:
			if !open {
				return nil
			}
		}
	}
}
