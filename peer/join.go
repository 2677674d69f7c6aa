package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"shoal/mesh/membership"
	"shoal/peer/identity"
)

// serviceGossip carries gossip streams; its packets are UDP on the same port number.
const serviceGossip = "shoal/gossip"

// wireGuardPort is the UDP port of every peer's tunnel.
const wireGuardPort = 51820

// firstToken is how long the token lives that a founding peer prints.
const firstToken = 24 * time.Hour

// identify makes or loads who this peer is, and where it is.
func (p *Peer) identify(ctx context.Context) error {
	now := time.Now()
	start, self, err := p.cfg.HowToStart(ctx, now)
	if err != nil {
		return err
	}
	p.start, p.self, p.seeds = start, self, p.cfg.Addresses
	if p.cfg.Advertise != "" {
		p.advertise = netip.MustParseAddr(p.cfg.Advertise)
	}
	if err := p.cfg.portFree(ctx); err != nil {
		return err
	}
	switch start {
	case Founding:
		return p.found(now)
	case Joining:
		return p.join(ctx)
	default:
		return p.resume(now)
	}
}

func (p *Peer) found(now time.Time) error {
	if err := p.chooseAddress(); err != nil {
		return err
	}
	clusterCIDR, serviceCIDR, err := p.cfg.Ranges()
	if err != nil {
		return err
	}
	cluster, err := identity.Found(now, clusterCIDR, serviceCIDR)
	if err != nil {
		return err
	}
	pending, err := identity.Prepare(p.cfg.DataDir)
	if err != nil {
		return err
	}
	p.self, err = pending.Found(now, cluster, p.cfg.Name, []netip.Addr{p.advertise})
	if err == nil {
		p.log.Info("a new cluster is founded", "cluster", cluster.ID, "peer", p.self.ID, "name", p.self.Name)
	}
	return err
}

func (p *Peer) join(ctx context.Context) error {
	token, err := identity.ParseToken(p.cfg.Token)
	if err != nil {
		return err
	}
	pending, err := identity.Prepare(p.cfg.DataDir)
	if err != nil {
		return err
	}
	joiner := identity.Joiner{
		Token: token, Pending: pending, Name: p.cfg.Name, Version: p.cfg.Version, Zone: p.cfg.Zone, Port: p.cfg.Port,
		Dial: p.cfg.Machine.Dial,
	}
	if p.advertise.IsValid() {
		joiner.Addresses = []netip.Addr{p.advertise}
	}
	joined, err := joiner.Join(ctx, p.cfg.Addresses)
	if err != nil {
		return err
	}
	p.self, p.advertise = joined.Peer, joined.Advertise
	p.seeds = append(p.seeds, joined.Members...)
	p.log.Info("joined the cluster", "cluster", p.self.Cluster.ID, "peer", p.self.ID, "name", p.self.Name)
	return nil
}

func (p *Peer) resume(now time.Time) error {
	if err := p.chooseAddress(); err != nil {
		return err
	}
	renewed, err := p.self.Ensure(now, []netip.Addr{p.advertise})
	if err != nil {
		return fmt.Errorf("renewing the certificate: %w", err)
	}
	p.log.Info("resuming", "cluster", p.self.Cluster.ID, "peer", p.self.ID, "name", p.self.Name, "newCertificate", renewed)
	p.seeds = append(p.seeds, loadSeeds(p.cfg.DataDir)...)
	return nil
}

// chooseAddress takes the address of the interface with the default route, unless one was given.
func (p *Peer) chooseAddress() error {
	if p.advertise.IsValid() {
		return nil
	}
	// Connecting a UDP socket sends nothing: it only makes the kernel choose a source. The target is a documentation address (RFC 5737).
	if conn, err := net.Dial("udp", "192.0.2.1:9"); err == nil {
		defer conn.Close()
		p.advertise = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("reading this host's addresses: %w", err)
	}
	if p.advertise, err = p.outside(addresses); err != nil {
		return err
	}
	if p.advertise.IsValid() {
		return nil
	}
	return errors.New("this host has no IPv4 address that other peers could reach: give one with --advertise")
}

// outside is the first address of this host that is not the cluster's own: a predecessor's pod network is still there when a peer resumes.
func (p *Peer) outside(addresses []net.Addr) (netip.Addr, error) {
	pods, services, err := p.cfg.Ranges()
	if p.self != nil {
		pods, services, err = p.self.Cluster.ClusterCIDR, p.self.Cluster.ServiceCIDR, nil
	}
	for _, address := range addresses {
		prefix, notOne := netip.ParsePrefix(address.String())
		if ip := prefix.Addr(); notOne == nil && ip.Is4() && ip.IsGlobalUnicast() && !pods.Contains(ip) && !services.Contains(ip) {
			return ip, nil
		}
	}
	return netip.Addr{}, err
}

// portFree fails early, before anything is founded or joined, when the port is taken.
func (c Config) portFree(ctx context.Context) error {
	listener, err := c.listen(ctx)
	if err != nil {
		return fmt.Errorf("TCP port %d cannot be used (%w): stop what uses it, or choose another with --listen", c.Port, err)
	}
	return listener.Close()
}

// openMembership starts gossip and enters it through whichever known peer answers.
func (p *Peer) openMembership(ctx context.Context) error {
	packets, err := p.cfg.listenPacket()
	if err != nil {
		return fmt.Errorf("UDP port %d cannot be used (%w): stop what uses it, or choose another with --listen", p.cfg.Port, err)
	}
	streams, err := p.link.Listen(serviceGossip)
	if err != nil {
		return err
	}
	p.members, err = membership.Open(membership.Config{
		PeerID: p.self.ID, Name: p.self.Name, Advertise: p.endpoint(),
		Packets: packets, Streams: streams,
		DialStream: func(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
			return p.link.DialAddress(ctx, address.String(), serviceGossip)
		},
		Key:    p.self.Cluster.GossipKey,
		Tags:   membership.Tags{Zone: p.cfg.Zone, Version: p.cfg.Version, WireGuardPort: wireGuardPort, WireGuardKey: p.self.WireGuard.Public().String()},
		Logger: p.log,
	})
	if err != nil {
		return err
	}
	if p.start == Joining {
		err := p.members.Join(ctx, resolveSeeds(ctx, p.seeds, p.log))
		if errors.Is(err, membership.ErrNameTaken) {
			return fmt.Errorf("%w: choose another with --name", err)
		}
		return err
	}
	// One that resumes may be the first to be back: it must not wait for the others, who may be waiting for it.
	go p.reenter(ctx)
	return nil
}

// reenterAfter is when the names of peers are looked up again, while none of them has answered.
const reenterAfter = 15 * time.Second

// reenter looks for the others until one answers. They may have moved: names are resolved anew with every round, and addresses that
// somebody gives meanwhile (`peer join ADDRESS`) end the search too.
func (p *Peer) reenter(ctx context.Context) {
	for round := 0; ctx.Err() == nil && (round == 0 || len(p.members.Alive()) < 2); round++ {
		joining, cancel := context.WithTimeout(ctx, reenterAfter)
		err := p.members.Join(joining, resolveSeeds(joining, p.seeds, p.log))
		cancel()
		switch {
		case err == nil && len(p.seeds) > 0:
			return
		case err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			p.log.Error("entering the gossip failed", "error", err)
			return
		case len(p.seeds) == 0:
			return // the first peer of a cluster, alone
		}
		p.log.Warn("no other peer answers at the addresses known here; if they have moved, tell one: peer join ADDRESS", "addresses", p.seeds)
	}
}

// resolveSeeds turns host names into addresses and leaves out what cannot be resolved now.
func resolveSeeds(ctx context.Context, addresses []string, log *slog.Logger) []netip.AddrPort {
	var seeds []netip.AddrPort
	for _, seed := range addresses {
		host, port, err := net.SplitHostPort(seed)
		if err != nil {
			continue
		}
		number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
		if err != nil {
			continue
		}
		addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		if err != nil {
			log.Warn("a peer's address cannot be resolved", "address", seed, "error", err)
			continue
		}
		for _, address := range addresses {
			seeds = append(seeds, netip.AddrPortFrom(address.Unmap(), uint16(number)))
		}
	}
	slices.SortFunc(seeds, netip.AddrPort.Compare)
	return slices.Compact(seeds)
}

// seedsFile holds the addresses of the other peers as of the last run.
const seedsFile = "peers.json"

func loadSeeds(dataDir string) []string {
	text, err := os.ReadFile(filepath.Join(dataDir, seedsFile))
	if err != nil {
		return nil
	}
	var seeds []string
	if json.Unmarshal(text, &seeds) != nil {
		return nil // a torn file costs nothing but these hints
	}
	return seeds
}

// saveSeeds writes down where the other peers are, for the next start.
func (p *Peer) saveSeeds() error {
	seeds := []string{}
	for _, address := range p.members.Addresses() {
		seeds = append(seeds, address.String())
	}
	// Names that were given stay true when addresses change.
	for _, seed := range p.seeds {
		if _, err := netip.ParseAddrPort(seed); err != nil && !slices.Contains(seeds, seed) {
			seeds = append(seeds, seed)
		}
	}
	text, err := json.Marshal(seeds)
	if err != nil {
		return err
	}
	path := filepath.Join(p.cfg.DataDir, seedsFile)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// alive tells whether gossip believes a peer to be there.
func (p *Peer) alive(peerID string) bool { return slices.Contains(p.members.Alive(), peerID) }

// serveJoin lets further hosts in.
func (p *Peer) serveJoin(ctx context.Context) error {
	listener, err := p.link.Listen(identity.JoinService)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(p.api.Loopback())
	if err != nil {
		return err
	}
	server := &identity.JoinServer{
		Peer: p.self, Version: p.cfg.Version, Logger: p.log,
		LookupToken: func(ctx context.Context, id string) (identity.TokenRecord, bool, error) {
			secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, identity.SecretName(id), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return identity.TokenRecord{}, false, nil
			}
			if err != nil {
				return identity.TokenRecord{}, false, err
			}
			record, err := identity.TokenFromSecret(secret)
			if err != nil {
				p.log.Warn("a join token cannot be read and does not count", "token", id, "error", err)
				return identity.TokenRecord{}, false, nil
			}
			return record, true, nil
		},
		NameTaken: func(ctx context.Context, name, peerID string) (bool, error) {
			return nameTaken(ctx, p.host, p.alive, name, peerID)
		},
		RegisterPeer: func(ctx context.Context, record identity.PeerRecord) error {
			err := registerPeer(ctx, p.host, p.alive, record)
			if errors.Is(err, errNameTaken) {
				return identity.NameTakenRefusal(record.Name)
			}
			return err
		},
		Members: func() []string {
			addresses := []string{p.endpoint().String()}
			for _, address := range p.members.Addresses() {
				addresses = append(addresses, address.String())
			}
			return addresses
		},
	}
	return server.Run(ctx, listener)
}

// welcome tells the user what to do next, once the API is ready: a founder prints the command that adds the next host.
func (p *Peer) welcome(ctx context.Context) error {
	if err := p.api.WaitReady(ctx); err != nil {
		return nil // the peer is being stopped
	}
	p.log.Info("ready", "name", p.self.Name, "address", p.endpoint(), "after", time.Since(p.started).Round(time.Millisecond))
	if p.start != Founding {
		return nil
	}
	client, err := kubernetes.NewForConfig(p.api.Loopback())
	if err != nil {
		return err
	}
	token, err := identity.NewToken(p.self.Cluster.Pin())
	if err != nil {
		return err
	}
	secret := token.BootstrapSecret(time.Now().Add(firstToken), "made at founding")
	create := func(ctx context.Context) error {
		_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, secret, metav1.CreateOptions{})
		return err
	}
	if err := retry(ctx, p.log, "make the first join token", create); err != nil {
		return nil // the peer is being stopped
	}
	fmt.Fprintf(p.cfg.Output, "\nThe cluster is founded. On the next host:\n\n    peer join %s --token %s\n\nThe token expires in %s; `peer token create` makes another.\n\n",
		p.endpoint(), token, firstToken)
	return nil
}
