package membership

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// network is a lossy network in memory, without sockets, so that it runs in virtual time.
type network struct {
	mu     sync.Mutex
	chance *rand.Rand
	loss   float64 // of packets, 0 to 1
	delay  time.Duration
	hosts  map[netip.AddrPort]*virtualHost
}

func newNetwork(seed uint64, loss float64, delay time.Duration) *network {
	return &network{chance: rand.New(rand.NewPCG(seed, 1)), loss: loss, delay: delay, hosts: map[netip.AddrPort]*virtualHost{}}
}

// virtualHost is a PacketConn and a Listener at one address.
type virtualHost struct {
	network *network
	addr    netip.AddrPort
	packets chan packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

type packet struct {
	data []byte
	from net.Addr
}

func (n *network) host(addr netip.AddrPort) *virtualHost {
	h := &virtualHost{
		network: n, addr: addr,
		packets: make(chan packet, 1024), streams: make(chan net.Conn, 16), done: make(chan struct{}),
	}
	n.mu.Lock()
	n.hosts[addr] = h
	n.mu.Unlock()
	return h
}

func (n *network) find(addr netip.AddrPort) (h *virtualHost, lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[addr], n.chance.Float64() < n.loss
}

func (h *virtualHost) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-h.packets:
		return copy(b, p.data), p.from, nil
	case <-h.done:
		return 0, nil, net.ErrClosed
	}
}

func (h *virtualHost) WriteTo(b []byte, to net.Addr) (int, error) {
	target, lost := h.network.find(to.(*net.UDPAddr).AddrPort())
	if target == nil || lost {
		return len(b), nil
	}
	p := packet{data: append([]byte(nil), b...), from: net.UDPAddrFromAddrPort(h.addr)}
	time.AfterFunc(h.network.delay, func() {
		select {
		case target.packets <- p:
		default: // its buffer is full
		}
	})
	return len(b), nil
}

func (h *virtualHost) Accept() (net.Conn, error) {
	select {
	case c := <-h.streams:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *virtualHost) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	target, _ := h.network.find(addr)
	if target == nil {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case target.streams <- there:
		return here, nil
	case <-target.done:
	case <-ctx.Done():
	}
	return nil, errors.Join(errors.New("connection timed out"), here.Close(), there.Close())
}

// Close takes the host off the network.
func (h *virtualHost) Close() error {
	h.once.Do(func() {
		h.network.mu.Lock()
		if h.network.hosts[h.addr] == h {
			delete(h.network.hosts, h.addr)
		}
		h.network.mu.Unlock()
		close(h.done)
	})
	return nil
}

func (h *virtualHost) Addr() net.Addr                   { return net.TCPAddrFromAddrPort(h.addr) }
func (h *virtualHost) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(h.addr) }
func (h *virtualHost) SetDeadline(time.Time) error      { return nil }
func (h *virtualHost) SetReadDeadline(time.Time) error  { return nil }
func (h *virtualHost) SetWriteDeadline(time.Time) error { return nil }
