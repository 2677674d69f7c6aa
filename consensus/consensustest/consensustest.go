// Package consensustest gives tests real consensus hosts (dragonboat, disks in
// temporary folders) over a network in memory.
package consensustest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"shoal/consensus"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/polling"
)

// Network joins peers in memory. The zero value is not usable: see NewNetwork.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*bufconn.Listener
	peers     map[string]bool
	cut       map[[2]string]bool
	deaf      map[[2]string]bool
	conns     map[net.Conn]line
	silenced  map[line]bool
	stalled   map[net.Conn]bool
}

// NewNetwork returns a network without peers.
func NewNetwork() *Network {
	return &Network{
		listeners: map[string]*bufconn.Listener{},
		peers:     map[string]bool{},
		cut:       map[[2]string]bool{},
		deaf:      map[[2]string]bool{},
		conns:     map[net.Conn]line{},
		silenced:  map[line]bool{},
		stalled:   map[net.Conn]bool{},
	}
}

// errUnreachable is what dialling a dead or cut-off peer gives.
var errUnreachable = errors.New("peer is unreachable")

// Peers lists the peers that listen, in no order.
func (n *Network) Peers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for peer := range n.peers {
		all = append(all, peer)
	}
	return all
}

// Listen opens a peer's end of a service.
func (n *Network) Listen(peer, service string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := peer + " " + service
	if _, taken := n.listeners[key]; taken {
		return nil, fmt.Errorf("%s already listens for %s", peer, service)
	}
	l := bufconn.Listen(1 << 20)
	n.listeners[key], n.peers[peer] = l, true
	return &listener{Listener: l, network: n, peer: peer, key: key}, nil
}

type listener struct {
	*bufconn.Listener
	network   *Network
	peer, key string
}

func (l *listener) Close() error {
	n := l.network
	n.mu.Lock()
	if n.listeners[l.key] == l.Listener {
		delete(n.listeners, l.key)
		delete(n.peers, l.peer)
	}
	n.mu.Unlock()
	return l.Listener.Close()
}

// Accept waits for a connection whose dialling side has introduced itself, as
// certificates do on a real link.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var size [1]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			conn.Close()
			continue
		}
		name := make([]byte, size[0])
		if _, err := io.ReadFull(conn, name); err != nil {
			conn.Close()
			continue
		}
		return &identified{Conn: conn, peer: string(name)}, nil
	}
}

type identified struct {
	net.Conn
	peer string
}

// PeerID is the caller's identity.
func (c *identified) PeerID() string { return c.peer }

// Dial connects one peer to a service of another.
func (n *Network) Dial(ctx context.Context, from, to, service string) (net.Conn, error) {
	n.mu.Lock()
	l, ok := n.listeners[to+" "+service]
	cut := n.cut[[2]string{from, to}] || n.silenced[line{[2]string{from, to}, service}]
	n.mu.Unlock()
	if !ok || cut {
		return nil, fmt.Errorf("%s to %s: %w", from, to, errUnreachable)
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append([]byte{byte(len(from))}, from...)); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[conn] = line{[2]string{from, to}, service}
	return &tracked{Conn: conn, network: n, ends: [2]string{from, to}, closed: make(chan struct{})}, nil
}

// tracked is the dialling end of a connection.
type tracked struct {
	net.Conn
	network *Network
	ends    [2]string
	once    sync.Once
	closed  chan struct{}
}

// Read breaks the connection at an answer that Deafen wants lost, and waits after Stall.
func (c *tracked) Read(b []byte) (int, error) {
	size, err := c.Conn.Read(b)
	c.network.mu.Lock()
	lost, stalled := c.network.deaf[c.ends], c.network.stalled[c.Conn]
	c.network.mu.Unlock()
	if stalled {
		<-c.closed
		return 0, net.ErrClosed
	}
	if lost {
		c.Close()
		return 0, errUnreachable
	}
	return size, err
}

func (c *tracked) Close() error {
	c.network.mu.Lock()
	delete(c.network.conns, c.Conn)
	delete(c.network.stalled, c.Conn)
	c.network.mu.Unlock()
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// line is one direction between two peers, for one service.
type line struct {
	ends    [2]string
	service string
}

// Silence severs one service from one peer to another, in the direction of the dialling.
func (n *Network) Silence(from, to, service string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	dead := line{[2]string{from, to}, service}
	n.silenced[dead] = true
	for conn, l := range n.conns {
		if l == dead {
			conn.Close()
		}
	}
}

// Cut severs two peers in both directions: connections break, dialling fails.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a, b}], n.cut[[2]string{b, a}] = true, true
	for conn, l := range n.conns {
		if n.cut[l.ends] {
			conn.Close()
		}
	}
}

// Deafen loses what a peer is answered on connections that it dialled to another:
// what it says arrives, and then the connection breaks.
func (n *Network) Deafen(peer, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf[[2]string{peer, to}] = true
}

// Stall loses all that a peer is answered from now on over the connections that it has dialled, as if the others had lost their power: they
// do not break. New ones are sound.
func (n *Network) Stall(peer string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for conn, l := range n.conns {
		if l.ends[0] == peer {
			n.stalled[conn] = true
		}
	}
}

// Heal ends every cut and deafness.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.silenced)
	clear(n.deaf)
}

// ClusterID is the cluster that hosts of this package belong to.
const ClusterID = "consensustest"

// Config is a configuration for quick tests: a short tick, few workers, two data
// shards, silent log.
func (n *Network) Config(peer, dir string) consensus.Config {
	return consensus.Config{
		PeerID: peer, ClusterID: ClusterID, Dir: dir,
		Listen: func(service string) (net.Listener, error) { return n.Listen(peer, service) },
		Dial: func(ctx context.Context, to, service string) (net.Conn, error) {
			return n.Dial(ctx, peer, to, service)
		},
		Peers:      n.Peers,
		DataShards: 2,
		RTT:        10 * time.Millisecond,
		Frugal:     true,
		Logger:     slog.New(slog.DiscardHandler),
	}
}

// Open opens a host and shuts it down when the test ends. change may adjust the
// configuration, or be nil.
func (n *Network) Open(t testing.TB, peer, dir string, change func(*consensus.Config)) *consensus.Host {
	t.Helper()
	cfg := n.Config(peer, dir)
	if change != nil {
		change(&cfg)
	}
	h, err := consensus.Open(context.Background(), cfg)
	if err != nil {
		t.Fatalf("open host %s: %v", peer, err)
	}
	t.Cleanup(func() {
		// Nobody waits for a hand-over at the end of a test.
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := h.Shutdown(ctx); err != nil {
			t.Errorf("shut down host %s: %v", peer, err)
		}
	})
	return h
}

// NewHost returns a founded host that is alone in its cluster, with the given
// number of data shards (default 2).
func NewHost(t testing.TB, dataShards ...int) *consensus.Host {
	t.Helper()
	h := NewNetwork().Open(t, "peer-a", t.TempDir(), func(c *consensus.Config) {
		if len(dataShards) > 0 {
			c.DataShards = dataShards[0]
		}
	})
	Found(t, h)
	return h
}

// Found founds the host's cluster.
func Found(t testing.TB, h *consensus.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := h.Found(ctx); err != nil {
		t.Fatalf("found: %v", err)
	}
}

// Place assigns a shard to exactly the wanted peers and waits until its group is so.
// h must be one of them.
func Place(t testing.TB, h *consensus.Host, shard uint64, want ...shardmap.Want) {
	t.Helper()
	const patience = 30 * time.Second
	polling.Until(t, 5*time.Millisecond, patience, fmt.Sprintf("shard %d is assigned", shard), func(ctx context.Context) error {
		return Assign(ctx, h, shard, want)
	})
	polling.Until(t, 5*time.Millisecond, patience, fmt.Sprintf("shard %d settles at %v", shard, want), func(context.Context) error {
		if !Settled(h, shard, want) {
			return fmt.Errorf("%+v", h.Status())
		}
		return nil
	})
}

// Assign writes down that a shard is to be at exactly the wanted peers.
func Assign(ctx context.Context, h *consensus.Host, shard uint64, want []shardmap.Want) error {
	kv, _, _, err := h.Get(ctx, consensus.MetaShard, shardmap.Key(shard), consensus.Linearizable)
	if err != nil {
		return err
	}
	a, err := shardmap.Decode(kv.Key, kv.Value)
	if err != nil {
		return err
	}
	res, err := h.Propose(ctx, consensus.MetaShard, store.Transaction{
		Conditions: []store.Condition{{Key: kv.Key, Revision: kv.Mod}},
		Ops:        []store.Op{{Key: kv.Key, Value: a.Place(want, shardmap.Members{}).Encode()}},
	})
	if err == nil && !res.OK {
		return errors.New("the assignment changed meanwhile")
	}
	return err
}

// Settled says whether the shard's group has exactly the wanted members, as h, which
// needs a replica, sees it.
func Settled(h *consensus.Host, shard uint64, want []shardmap.Want) bool {
	for _, s := range h.Status() {
		if s.Shard != shard || !s.Local || len(s.Members) != len(want) {
			continue
		}
		for _, m := range s.Members {
			if !slices.Contains(want, shardmap.Want{Peer: m.Peer, Voter: m.Voter}) {
				return false
			}
		}
		return true
	}
	return false
}
