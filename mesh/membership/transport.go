package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's view of the network: packets over one PacketConn, streams over the peer's one TLS port.
type transport struct {
	advertise netip.AddrPort
	conn      net.PacketConn
	listener  net.Listener
	dial      func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	logger    *slog.Logger

	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	stop    func() error
	loops   sync.WaitGroup
}

const (
	largestPacket = 64 << 10
	// sealVersion is how all peers seal packets, in their first byte: AES-GCM without padding. memberlist takes the older version 0 too,
	// and panics over padding that is longer than the message.
	sealVersion = 1
	errorPause  = 50 * time.Millisecond // after a failed read or accept, so that a broken socket does not spin
)

var _ memberlist.Transport = (*transport)(nil)

func newTransport(c Config) *transport {
	t := &transport{
		advertise: c.Advertise, conn: c.Packets, listener: c.Streams, dial: c.DialStream, logger: c.Logger,
		packets: make(chan *memberlist.Packet),
		streams: make(chan net.Conn),
		done:    make(chan struct{}),
	}
	t.stop = sync.OnceValue(func() error {
		close(t.done)
		err := errors.Join(t.conn.Close(), t.listener.Close())
		t.loops.Wait()
		return err
	})
	t.loops.Go(t.receivePackets)
	t.loops.Go(t.acceptStreams)
	return t
}

// FinalAdvertiseAddr returns the configured address; memberlist's own guesses are ignored.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// WriteTo sends one packet, best effort.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip packet: %w", err)
	}
	_, err = t.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// PacketCh delivers received packets; what does not decrypt with the gossip key, memberlist drops.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout opens a stream to the peer at addr.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("gossip stream: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.dial(ctx, to)
}

// StreamCh delivers accepted streams.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown closes both sockets and waits for the loops; it may be called more than once.
func (t *transport) Shutdown() error { return t.stop() }

func (t *transport) receivePackets() {
	buf := make([]byte, largestPacket)
	for {
		n, from, err := t.conn.ReadFrom(buf)
		if err != nil {
			if !t.broken("receive gossip packet", err) {
				return
			}
			continue
		}
		if n == 0 || buf[0] != sealVersion {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.done:
			return
		}
	}
}

func (t *transport) acceptStreams() {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if !t.broken("accept gossip stream", err) {
				return
			}
			continue
		}
		select {
		case t.streams <- conn:
		case <-t.done:
			conn.Close()
			return
		}
	}
}

// broken reports whether the loop that met err should go on: not after Shutdown or when the socket is gone.
func (t *transport) broken(what string, err error) bool {
	select {
	case <-t.done:
		return false
	default:
	}
	t.logger.Warn(what, "err", err)
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-t.done:
		return false
	case <-time.After(errorPause):
		return true
	}
}
