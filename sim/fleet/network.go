package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// patience is after what time a connection over a cut cable breaks: what TCP keep-alive takes on a real peer.
const patience = 20 * time.Second

// Network joins the machines of a fleet in memory: packets may be lost, streams may stall, as over a real one. All chance comes from
// the seed that it was made with.
type Network struct {
	mu        sync.Mutex
	chance    *rand.Rand
	weather   Weather
	cut       map[[2]netip.Addr]bool       // from, to: nothing arrives
	slow      map[netip.Addr]time.Duration // how much later arrives what a machine sends or is sent
	listeners map[netip.AddrPort]*listener
	sockets   map[netip.AddrPort]*socket
	streams   map[*stream]struct{}
}

// Weather is what befalls everything that is sent.
type Weather struct {
	Delay  time.Duration // of everything
	Jitter time.Duration // added to packets, evenly drawn: they overtake each other
	Loss   float64       // of packets, 0 to 1; streams lose nothing, a lost segment costs them Retransmit
	Double float64       // of packets, 0 to 1: delivered twice
	// Retransmit is how much later a segment of a stream arrives that was lost once.
	Retransmit time.Duration
}

// Calm is a network in one room.
var Calm = Weather{Delay: 200 * time.Microsecond, Retransmit: 200 * time.Millisecond}

// NewNetwork returns a calm network without machines.
func NewNetwork(seed uint64) *Network {
	return &Network{
		chance: rand.New(rand.NewPCG(seed, 0x6e6574)), weather: Calm, cut: map[[2]netip.Addr]bool{}, slow: map[netip.Addr]time.Duration{},
		listeners: map[netip.AddrPort]*listener{}, sockets: map[netip.AddrPort]*socket{}, streams: map[*stream]struct{}{},
	}
}

// SetWeather changes what befalls everything that is sent from now on.
func (n *Network) SetWeather(w Weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weather = w
}

// Slow has everything that a machine sends, and that is sent to it, arrive so much later; 0 ends it.
func (n *Network) Slow(machine netip.Addr, by time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[machine] = by
}

// delay is how long everything takes from one address to another; n.mu is held.
func (n *Network) delay(from, to netip.Addr) time.Duration {
	return n.weather.Delay + n.slow[from] + n.slow[to]
}

// Cut ends or mends the way from one address to another; the way back is another.
func (n *Network) Cut(from, to netip.Addr, cut bool) {
	n.mu.Lock()
	var concerned []*stream
	if n.cut[[2]netip.Addr{from, to}] != cut {
		if cut {
			n.cut[[2]netip.Addr{from, to}] = true
		} else {
			delete(n.cut, [2]netip.Addr{from, to})
		}
		for s := range n.streams {
			if s.from.Addr() == from && s.to.Addr() == to {
				concerned = append(concerned, s)
			}
		}
	}
	n.mu.Unlock()
	for _, s := range concerned {
		s.setStalled(cut)
	}
}

// Reset breaks every connection of a machine at once, as the end of a process does, and withdraws its ports.
func (n *Network) Reset(machine netip.Addr) {
	n.mu.Lock()
	var concerned []*stream
	for s := range n.streams {
		if s.from.Addr() == machine || s.to.Addr() == machine {
			concerned = append(concerned, s)
		}
	}
	var ports []interface{ Close() error }
	for address, l := range n.listeners {
		if address.Addr() == machine {
			ports = append(ports, l)
		}
	}
	for address, s := range n.sockets {
		if address.Addr() == machine {
			ports = append(ports, s)
		}
	}
	n.mu.Unlock()
	for _, port := range ports {
		_ = port.Close()
	}
	for _, s := range concerned {
		s.fail(syscall.ECONNRESET)
	}
}

// listen opens a TCP port of a machine.
func (n *Network) listen(machine netip.Addr, address string) (net.Listener, error) {
	at, err := portOf(machine, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[at] != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, syscall.EADDRINUSE)
	}
	l := &listener{network: n, at: at, conns: make(chan *conn, 128), closed: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

// portOf is a machine's own address with the port of "[IP]:PORT".
func portOf(machine netip.Addr, address string) (netip.AddrPort, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(machine.String(), port))
}

// dial connects a machine to a TCP port.
func (n *Network) dial(ctx context.Context, from netip.Addr, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	for {
		n.mu.Lock()
		l, delay := n.listeners[to], n.delay(from, to.Addr())
		blocked := n.cut[[2]netip.Addr{from, to.Addr()}] || n.cut[[2]netip.Addr{to.Addr(), from}]
		n.mu.Unlock()
		if !blocked {
			if err := pause(ctx, 2*delay); err != nil {
				return nil, err
			}
			if l == nil {
				return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
			}
			return l.connect(ctx, from)
		}
		if err := pause(ctx, time.Second); err != nil { // as a lost SYN is sent again
			return nil, fmt.Errorf("dial %s: %w", to, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listener is an open TCP port.
type listener struct {
	network *Network
	at      netip.AddrPort
	conns   chan *conn
	closed  chan struct{}
	once    sync.Once
}

func (l *listener) connect(ctx context.Context, from netip.Addr) (net.Conn, error) {
	here := l.network.ephemeral(from)
	forth, back := l.network.stream(here, l.at), l.network.stream(l.at, here)
	there := &conn{in: forth, out: back, local: l.at, remote: here}
	select {
	case l.conns <- there:
		return &conn{in: back, out: forth, local: here, remote: l.at}, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	forth.fail(net.ErrClosed)
	back.fail(net.ErrClosed)
	return nil, fmt.Errorf("dial %s: %w", l.at, syscall.ECONNREFUSED)
}

// ephemeral draws a port for the client's side; it need not be unique.
func (n *Network) ephemeral(machine netip.Addr) netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return netip.AddrPortFrom(machine, uint16(32768+n.chance.IntN(28000)))
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		if l.network.listeners[l.at] == l {
			delete(l.network.listeners, l.at)
		}
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.conns:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// listenPacket opens a UDP port of a machine.
func (n *Network) listenPacket(machine netip.Addr, address string) (net.PacketConn, error) {
	at, err := portOf(machine, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[at] != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, syscall.EADDRINUSE)
	}
	s := &socket{network: n, at: at, packets: make(chan packet, 1024), closed: make(chan struct{})}
	n.sockets[at] = s
	return s, nil
}

// socket is an open UDP port.
type socket struct {
	network *Network
	at      netip.AddrPort
	packets chan packet
	closed  chan struct{}
	once    sync.Once
}

type packet struct {
	data []byte
	from netip.AddrPort
}

// ReadFrom implements net.PacketConn.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-s.packets:
		return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo implements net.PacketConn. Nobody is told whether a packet arrives.
func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, errors.New("a packet needs a UDP address")
	}
	for _, delay := range s.network.fates(s.at.Addr(), udp.AddrPort().Addr().Unmap()) {
		p := packet{data: append([]byte(nil), b...), from: s.at}
		time.AfterFunc(delay, func() { s.network.deliver(p, udp.AddrPort()) })
	}
	return len(b), nil
}

// fates are the delays of the copies of a packet that will arrive.
func (n *Network) fates(from, to netip.Addr) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.weather
	if n.cut[[2]netip.Addr{from, to}] || n.chance.Float64() < w.Loss {
		return nil
	}
	copies := 1
	if n.chance.Float64() < w.Double {
		copies = 2
	}
	var delays []time.Duration
	for range copies {
		delay := n.delay(from, to)
		if w.Jitter > 0 {
			delay += time.Duration(n.chance.Int64N(int64(w.Jitter)))
		}
		delays = append(delays, delay)
	}
	return delays
}

func (n *Network) deliver(p packet, to netip.AddrPort) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	n.mu.Lock()
	s := n.sockets[to]
	if n.cut[[2]netip.Addr{p.from.Addr(), to.Addr()}] {
		s = nil
	}
	n.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case s.packets <- p:
	default: // its buffer is full
	}
}

// Close implements net.PacketConn.
func (s *socket) Close() error {
	s.once.Do(func() {
		s.network.mu.Lock()
		if s.network.sockets[s.at] == s {
			delete(s.network.sockets, s.at)
		}
		s.network.mu.Unlock()
		close(s.closed)
	})
	return nil
}

// LocalAddr implements net.PacketConn.
func (s *socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.at) }

// SetDeadline implements net.PacketConn; gossip does not use it.
func (s *socket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn; gossip does not use it.
func (s *socket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.PacketConn; gossip does not use it.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }
