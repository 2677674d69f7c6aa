// Package link is the one TCP port of a peer. Every connection is TLS 1.3, and
// the protocol named in its handshake (ALPN) says what it is for: `h2` and
// `http/1.1` are the Kubernetes API, for which a client certificate is
// optional; `shoal/<service>` are the services among peers, for which a peer's
// certificate of the same cluster is mandatory; `shoal/join` takes those who
// have no certificate yet.
//
// Below this package a service is a plain net.Listener and a dial function: a
// peer is called by its ID, and the link finds its address and proves that the
// one who answers holds that very peer's key.
package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/peer/identity"
)

const (
	servicePrefix = "shoal/"

	// Ends of a dead host are noticed after about 20 s even when nobody writes.
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 3 * time.Second
	keepAliveCount    = 3
)

// Config says how the port is served.
type Config struct {
	// Identity is the peer's own; its certificate may change at any time.
	Identity *identity.Peer
	// Listen is the IP address to bind, empty for all.
	Listen string
	// Port to bind; 0 takes a free one (tests).
	Port int
	// OpenPort and Connect replace TCP in simulations; nil is TCP. Addresses are host:port.
	OpenPort func(ctx context.Context, address string) (net.Listener, error)
	Connect  func(ctx context.Context, address string) (net.Conn, error)
	// Resolve finds the address (host:port) at which a peer is believed to
	// be. Dial fails with its error.
	Resolve func(peerID string) (string, error)
	// Refuse, when set, may turn away a peer whose certificate is valid, for
	// example because it was removed from the cluster.
	Refuse func(peerID string) error

	HandshakeTimeout time.Duration // 0: 10 s
	DialTimeout      time.Duration // 0: 5 s, connect and handshake together
	MaxHandshakes    int           // in flight at once; 0: 512
	// MaxHandshakesPerSource bounds one address's share of them; 0: 128.
	MaxHandshakesPerSource int
	Logger                 *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 10 * time.Second
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 512
	}
	if c.MaxHandshakesPerSource == 0 {
		c.MaxHandshakesPerSource = 128
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.OpenPort == nil {
		listen := net.ListenConfig{KeepAliveConfig: keepAlive()}
		c.OpenPort = func(ctx context.Context, address string) (net.Listener, error) {
			return listen.Listen(ctx, "tcp", address)
		}
	}
	if c.Connect == nil {
		dialer := net.Dialer{KeepAliveConfig: keepAlive()}
		c.Connect = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	return c
}

// Link is an open port. Run serves it; until then connections wait in the
// kernel's queue.
type Link struct {
	config   Config
	tcp      net.Listener
	api      *queue
	apiTLS   *tls.Config
	slots    slots
	closed   chan struct{}
	closeOne sync.Once

	mu       sync.Mutex
	services map[string]*queue
}

// Open binds the port. A port in use is said so, with the flag to change it.
func Open(config Config) (*Link, error) {
	config = config.withDefaults()
	address := net.JoinHostPort(config.Listen, strconv.Itoa(config.Port))
	listener, err := config.OpenPort(context.Background(), address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("TCP port %d is in use by another process: stop it, or choose another port with --listen", config.Port)
	}
	if err != nil {
		return nil, fmt.Errorf("bind TCP %s (change it with --listen): %w", address, err)
	}
	l := &Link{
		config: config, tcp: listener, closed: make(chan struct{}),
		slots:    slots{max: config.MaxHandshakes, maxPerSource: config.MaxHandshakesPerSource, taken: map[netip.Addr]int{}},
		services: map[string]*queue{},
	}
	l.api = newQueue(listener.Addr(), func() {})
	l.apiTLS = l.apiConfig()
	return l, nil
}

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount}
}

// Addr is the bound address.
func (l *Link) Addr() net.Addr { return l.tcp.Addr() }

// API is the listener of the Kubernetes API. What it accepts are *tls.Conn
// whose handshake is done, so that http.Server sees the protocol and the
// client's certificate (already verified against the cluster's CA if one was given).
func (l *Link) API() net.Listener { return l.api }

// canonical lets callers say "raft" for "shoal/raft".
func canonical(service string) string {
	return servicePrefix + strings.TrimPrefix(service, servicePrefix)
}

// Listen offers a service to the other peers. What it accepts are *Conn, whose
// PeerID is the verified ID of the caller (empty for shoal/join). Closing the
// listener withdraws the service.
func (l *Link) Listen(service string) (net.Listener, error) {
	service = canonical(service)
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil, fmt.Errorf("listen %s: %w", service, net.ErrClosed)
	default:
	}
	if l.services[service] != nil {
		return nil, fmt.Errorf("listen %s: the service is offered already", service)
	}
	q := newQueue(l.tcp.Addr(), func() { l.withdraw(service) })
	l.services[service] = q
	return q, nil
}

func (l *Link) withdraw(service string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.services, service)
}

func (l *Link) service(name string) *queue {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.services[name]
}

// Conn is a connection between two peers.
type Conn struct {
	*tls.Conn
	peerID  string
	service string
}

// PeerID is the verified ID of the peer at the other end; empty only on
// accepted connections of shoal/join.
func (c *Conn) PeerID() string { return c.peerID }

// Service is the name of the service, `shoal/raft` for example.
func (c *Conn) Service() string { return c.service }

// apiConfig serves users of the API. It is made once, since session tickets
// live in it.
func (l *Link) apiConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: l.config.Identity.GetCertificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      l.config.Identity.Cluster.CAPool(),
	}
}

// serviceConfig serves one caller of a service among peers.
func (l *Link) serviceConfig(service string) *tls.Config {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{service},
		GetCertificate:         l.config.Identity.GetCertificate,
		SessionTicketsDisabled: true, // every caller proves its key anew
	}
	if service == identity.JoinService {
		return config
	}
	config.ClientAuth = tls.RequireAnyClientCert // verified, by our own rules, below
	config.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := l.verify(state.PeerCertificates, x509.ExtKeyUsageClientAuth)
		return err
	}
	return config
}

// verify is the one rule for both directions: a valid certificate of a peer of
// this cluster, and one that was not removed.
//
// One that is not valid yet is valid: nobody signs in advance, so it is this host's
// clock that is behind, which only the others can tell it.
func (l *Link) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage) (string, error) {
	now := time.Now()
	if len(chain) > 0 && now.Before(chain[0].NotBefore) {
		now = chain[0].NotBefore
	}
	peer, err := l.config.Identity.Cluster.VerifyPeer(now, chain, usage)
	if err != nil {
		return "", err
	}
	if l.config.Refuse != nil {
		if err := l.config.Refuse(peer.PeerID); err != nil {
			return "", fmt.Errorf("peer %s (%s): %w", peer.Name, peer.PeerID, err)
		}
	}
	return peer.PeerID, nil
}
