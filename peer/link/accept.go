package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"shoal/peer/identity"
)

const (
	// queueLength is how many accepted connections wait for a service's Accept.
	queueLength = 128
	// queueWait is how long one waits for room in that queue before it is dropped.
	queueWait = 2 * time.Second
)

// Run accepts until ctx ends, then closes the port, every listener and every
// connection still in its handshake. It returns an error only when the port
// itself fails.
func (l *Link) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, l.Close)
	defer stop()
	defer l.Close()
	var pending sync.WaitGroup
	defer pending.Wait()
	// Cancelled before the wait, so that open handshakes do not hold it up.
	handshakes, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		conn, err := l.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of file descriptors, or a connection that died in the queue.
			l.config.Logger.Warn("accept", "address", l.tcp.Addr(), "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		source := sourceOf(conn)
		if !l.slots.take(source) {
			_ = conn.Close()
			continue
		}
		pending.Go(func() {
			defer l.slots.release(source)
			l.dispatch(handshakes, conn)
		})
	}
}

// Close closes the port and every listener. Connections already handed over
// belong to those who accepted them.
func (l *Link) Close() {
	l.closeOne.Do(func() {
		close(l.closed)
		_ = l.tcp.Close()
		_ = l.api.Close()
		l.mu.Lock()
		services := l.services
		l.services = map[string]*queue{}
		l.mu.Unlock()
		for _, q := range services {
			_ = q.Close()
		}
	})
}

func sourceOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// dispatch finishes the handshake and hands the connection to its service.
// Whatever goes wrong here is the caller's doing: the connection is closed and
// nothing else happens.
func (l *Link) dispatch(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, l.config.HandshakeTimeout)
	defer cancel()
	merged := newMergedConn(raw)
	conn := tls.Server(merged, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: l.configFor,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		l.config.Logger.Debug("handshake", "from", raw.RemoteAddr(), "error", err)
		return
	}
	if err := l.deliver(conn, merged); err != nil {
		_ = conn.Close()
		l.config.Logger.Debug("connection dropped", "from", raw.RemoteAddr(), "error", err)
	}
}

// configFor chooses the rules by the protocol the client asks for first. A
// client that names none is a plain HTTPS client.
func (l *Link) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	for _, protocol := range hello.SupportedProtos {
		if !strings.HasPrefix(protocol, servicePrefix) {
			continue
		}
		if l.service(protocol) == nil {
			// Answered with the alert no_application_protocol, which Dial
			// on the other side turns into ErrNoService.
			return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"-"}, GetCertificate: l.config.Identity.GetCertificate}, nil
		}
		return l.serviceConfig(protocol), nil
	}
	if l.api.refusing.Load() {
		// A client whose handshake fails has sent nothing yet, so it can ask another peer without harm.
		return nil, errNoAPI
	}
	return l.apiTLS, nil
}

var errNoAPI = errors.New("this peer does not serve the API any more")

// deliver hands the connection to its service. Writes to users of the API are merged;
// among peers each is written at once.
func (l *Link) deliver(conn *tls.Conn, merged *mergedConn) error {
	state := conn.ConnectionState()
	service := state.NegotiatedProtocol
	if !strings.HasPrefix(service, servicePrefix) {
		merged.merge()
		return l.api.put(conn)
	}
	q := l.service(service)
	if q == nil {
		return fmt.Errorf("%s was withdrawn", service)
	}
	accepted := &Conn{Conn: conn, service: service}
	if len(state.PeerCertificates) > 0 {
		peer, err := identity.ParsePeer(state.PeerCertificates[0]) // verified during the handshake
		if err != nil {
			return err
		}
		accepted.peerID = peer.PeerID
	}
	return q.put(accepted)
}

// slots bounds the handshakes in flight, in all and per source address.
type slots struct {
	max          int
	maxPerSource int

	mu    sync.Mutex
	all   int
	taken map[netip.Addr]int
}

func (s *slots) take(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= s.max || s.taken[source] >= s.maxPerSource {
		return false
	}
	s.all++
	s.taken[source]++
	return true
}

func (s *slots) release(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.taken[source]--; s.taken[source] == 0 {
		delete(s.taken, source)
	}
}

// queue is the net.Listener of one service.
type queue struct {
	address net.Addr
	onClose func()
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once

	refusing atomic.Bool
}

func newQueue(address net.Addr, onClose func()) *queue {
	return &queue{address: address, onClose: onClose, conns: make(chan net.Conn, queueLength), closed: make(chan struct{})}
}

func (q *queue) put(conn net.Conn) error {
	select {
	case <-q.closed:
		return net.ErrClosed
	default:
	}
	timer := time.NewTimer(queueWait)
	defer timer.Stop()
	select {
	case q.conns <- conn:
		select {
		case <-q.closed: // closed meanwhile: its Close may have looked before we put
			q.drain()
		default:
		}
		return nil
	case <-q.closed:
		return net.ErrClosed
	case <-timer.C:
		return errors.New("nobody accepts")
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case <-q.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Refuse lets no further connection in, while those that are in already are still accepted. Only the API's listener heeds it.
func (q *queue) Refuse() { q.refusing.Store(true) }

// Close withdraws the listener and drops the connections nobody accepted.
func (q *queue) Close() error {
	q.Refuse()
	q.once.Do(func() {
		close(q.closed)
		q.onClose()
		q.drain()
	})
	return nil
}

func (q *queue) drain() {
	for {
		select {
		case conn := <-q.conns:
			_ = conn.Close()
		default:
			return
		}
	}
}

func (q *queue) Addr() net.Addr { return q.address }
