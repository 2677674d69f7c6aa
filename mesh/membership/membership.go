// Package membership keeps the list of peers that are alive, by gossip (serf).
//
// It answers three questions: which peers exist, where a peer can be reached, and which of them have stopped
// answering. It decides nothing: a failed member is a hint, the node's lease is what counts.
//
// Packets travel over UDP, encrypted with the cluster's gossip key; streams (full state exchange, fallback probes)
// travel over the peer's one TLS port. Both are handed in, so the same code runs over sockets and over a simulated
// network under testing/synctest.
package membership

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/serf/serf"
)

// ErrNameTaken says that a live peer with another ID already uses this peer's name.
var ErrNameTaken = errors.New("peer name is taken")

// ErrClosed is returned once Leave or Shutdown was called, or when another peer has proved to own our ID.
var ErrClosed = errors.New("membership is closed")

// Timing of failure detection: a killed peer is noticed after 1.3 to 1.8 s at 0.6 % of a core, where serf's LAN
// profile takes 5.8 to 7.8 s.
const (
	probeInterval     = 300 * time.Millisecond
	probeTimeout      = 120 * time.Millisecond
	suspicionMult     = 3
	gossipInterval    = 100 * time.Millisecond
	pushPullInterval  = 10 * time.Second // whole state with one peer: what a lost packet withheld, arrives by then
	streamTimeout     = 3 * time.Second
	reconnectInterval = 3 * time.Second

	retryFirst   = 200 * time.Millisecond
	retryMost    = 5 * time.Second
	strayJoins   = 10 * time.Minute
	nameGrace    = 5 * time.Second // longer than it takes to notice that the name's previous owner is dead
	keyBytes     = 32
	eventBacklog = 1024
)

// Config is what Open needs. Packets, Streams and DialStream belong to the Membership afterwards.
type Config struct {
	PeerID    string         // the peer's identity, unique for ever
	Name      string         // the Kubernetes node name, unique among live peers
	Advertise netip.AddrPort // where others reach this peer; gossip packets and streams use the same port number

	Packets    net.PacketConn                                                   // gossip packets
	Streams    net.Listener                                                     // incoming gossip streams
	DialStream func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) // outgoing gossip streams

	Key    []byte // the cluster's gossip key, 32 bytes
	Tags   Tags
	Logger *slog.Logger // nil means slog.Default()
}

// Membership is this peer's part in the gossip. All methods may be called at once from several goroutines.
type Membership struct {
	id, name  string
	advertise netip.AddrPort
	logger    *slog.Logger
	serf      *serf.Serf
	transport *transport

	mu          sync.Mutex
	members     map[string]Member
	alive       []string // what Alive answers, until members change
	subscribers map[*subscriber]struct{}
}

// Open starts gossiping. The peer is alone until Join reaches another one or another one joins it.
func Open(c Config) (*Membership, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	m := &Membership{
		id: c.PeerID, name: c.Name, advertise: c.Advertise, logger: c.Logger,
		transport:   newTransport(c),
		members:     map[string]Member{},
		subscribers: map[*subscriber]struct{}{},
	}
	m.members[c.PeerID] = Member{PeerID: c.PeerID, Name: c.Name, Address: c.Advertise, Tags: c.Tags, Status: Alive}

	events := make(chan serf.Event, eventBacklog)
	s, err := serf.Create(m.serfConfig(c, events))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip on %s: %w", c.Advertise, err), m.transport.Shutdown())
	}
	m.serf = s
	go m.follow(events)
	return m, nil
}

func (c Config) check() error {
	switch {
	case c.PeerID == "" || c.Name == "":
		return errors.New("gossip needs a peer ID and a peer name")
	case !c.Advertise.IsValid() || c.Advertise.Addr().IsUnspecified():
		return fmt.Errorf("gossip needs an address that other peers can reach, not %q", c.Advertise)
	case len(c.Key) != keyBytes:
		return fmt.Errorf("the gossip key has %d bytes instead of %d", len(c.Key), keyBytes)
	case c.Packets == nil || c.Streams == nil || c.DialStream == nil:
		return errors.New("gossip needs a packet connection, a stream listener and a stream dialer")
	}
	return nil
}

func (m *Membership) serfConfig(c Config, events chan<- serf.Event) *serf.Config {
	logger := log.New(&logWriter{logger: c.Logger}, "", 0)
	s := serf.DefaultConfig()
	s.NodeName = c.PeerID
	s.Tags = c.Tags.encode(c.Name)
	s.EventCh = events
	s.ReconnectInterval = reconnectInterval
	s.Merge = admission{protocol: serf.ProtocolVersionMap[s.ProtocolVersion], delegate: s.ProtocolVersion}
	s.DisableCoordinates = true // nobody asks how far peers are from each other
	s.LogOutput, s.Logger = nil, logger

	l := s.MemberlistConfig
	l.Transport = m.transport
	l.SecretKey = slices.Clone(c.Key)
	l.ProbeInterval, l.ProbeTimeout = probeInterval, probeTimeout
	l.SuspicionMult, l.GossipInterval = suspicionMult, gossipInterval
	l.PushPullInterval = pushPullInterval
	// Messages are small: compressing them costs ten times what it saves of sending. What others compress is understood.
	l.EnableCompression = false
	l.TCPTimeout = streamTimeout
	l.LogOutput, l.Logger = nil, logger
	return s
}

// Members lists every known peer, this one included, sorted by peer ID.
func (m *Membership) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.members), func(a, b Member) int { return strings.Compare(a.PeerID, b.PeerID) })
}

// Alive lists the IDs of the peers believed alive, this one included, sorted. It is asked for with every request that goes to another peer,
// so all callers get the same list, and may not change it.
func (m *Membership) Alive() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.alive == nil {
		for id, member := range m.members {
			if member.Status == Alive {
				m.alive = append(m.alive, id)
			}
		}
		slices.Sort(m.alive)
		m.alive = slices.Clip(m.alive) // who appends gets another array
	}
	return m.alive
}

// Address tells where a peer is reached. It also answers for failed peers, with their last known address.
func (m *Membership) Address(peerID string) (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	member, ok := m.members[peerID]
	return member.Address, ok && member.Address.IsValid()
}

// Addresses lists where the other peers that have not left are reached: saved by the caller, it is what Join needs
// after a restart.
func (m *Membership) Addresses() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, member := range m.Members() {
		if member.PeerID != m.id && member.Status != Left {
			addrs = append(addrs, member.Address)
		}
	}
	return addrs
}

// SetTags replaces this peer's tags and tells the others.
func (m *Membership) SetTags(t Tags) error {
	if err := m.serf.SetTags(t.encode(m.name)); err != nil {
		return fmt.Errorf("set gossip tags: %w", err)
	}
	return nil
}

// InstallKey makes every live peer accept packets sealed with key (32 bytes). The first step of a rotation:
// install everywhere, use everywhere, remove the old one everywhere. The caller keeps the keys across restarts.
func (m *Membership) InstallKey(key []byte) error {
	return m.rotate("install", key, m.serf.KeyManager().InstallKey)
}

// UseKey makes every live peer seal its packets with key, which must be installed.
func (m *Membership) UseKey(key []byte) error {
	return m.rotate("use", key, m.serf.KeyManager().UseKey)
}

// RemoveKey makes every live peer forget key, which must not be the one in use.
func (m *Membership) RemoveKey(key []byte) error {
	return m.rotate("remove", key, m.serf.KeyManager().RemoveKey)
}

func (m *Membership) rotate(verb string, key []byte, do func(string) (*serf.KeyResponse, error)) error {
	if len(key) != keyBytes {
		return fmt.Errorf("the gossip key has %d bytes instead of %d", len(key), keyBytes)
	}
	response, err := do(base64.StdEncoding.EncodeToString(key))
	if err == nil {
		return nil
	}
	if response == nil {
		return fmt.Errorf("%s gossip key: %w", verb, err)
	}
	return fmt.Errorf("%s gossip key: %d of %d peers did it, %d refused %v: %w", verb,
		response.NumResp-response.NumErr, response.NumNodes, response.NumErr, response.Messages, err)
}

// Leave tells the others that this peer goes on purpose, then stops. When ctx ends first, it stops at once.
func (m *Membership) Leave(ctx context.Context) error {
	left := make(chan error, 1)
	go func() { left <- m.serf.Leave() }()
	var err error
	select {
	case err = <-left:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if stop := m.Shutdown(); err == nil {
		err = stop
	}
	if err != nil {
		return fmt.Errorf("leave the gossip: %w", err)
	}
	return nil
}

// Shutdown stops without a word, as a crash would; the others find out by probing.
func (m *Membership) Shutdown() error {
	if err := m.serf.Shutdown(); err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// Done is closed when gossip has stopped: after Leave or Shutdown, or because another peer owns our ID (a copied
// data folder): serf lets the majority decide and stops the loser.
func (m *Membership) Done() <-chan struct{} { return m.serf.ShutdownCh() }
