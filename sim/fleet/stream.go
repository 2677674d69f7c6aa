package fleet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// streamBuffer is how much a stream holds that nobody has read, in bytes.
const streamBuffer = 1 << 20

// stream is one direction of a connection: bytes arrive in order, after the network's delay, and not while the way is cut.
type stream struct {
	network  *Network
	from, to netip.AddrPort

	mu       sync.Mutex
	toRead   gate        // opens when a reader that waits has to look again
	toWrite  gate        // and a writer
	arrives  *time.Timer // the first segment, while it is under way: whoever waits for it need not wake up twice
	segments []segment
	held     int       // bytes in segments
	last     time.Time // when the last segment arrives: none overtakes another
	stalled  bool
	stalls   int  // changes of stalled so far
	ended    bool // the writer has closed
	err      error
	readBy   time.Time
	writeBy  time.Time
}

type segment struct {
	data []byte
	at   time.Time
}

func (n *Network) stream(from, to netip.AddrPort) *stream {
	s := &stream{network: n, from: from, to: to, arrives: time.NewTimer(0)}
	s.arrives.Stop()
	n.mu.Lock()
	n.streams[s] = struct{}{}
	s.stalled = n.cut[[2]netip.Addr{from.Addr(), to.Addr()}]
	n.mu.Unlock()
	return s
}

// arrival is how long a segment takes that is written now.
func (n *Network) arrival(from, to netip.Addr) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	delay := n.delay(from, to)
	if n.weather.Loss > 0 && n.chance.Float64() < n.weather.Loss {
		delay += n.weather.Retransmit
	}
	return delay
}

// gate is where goroutines wait for a change of what a mutex guards, which is held for all but the waiting itself.
type gate struct {
	waiting int
	next    chan struct{} // closed when it opens
}

func (g *gate) enter() <-chan struct{} {
	if g.next == nil {
		g.next = make(chan struct{})
	}
	g.waiting++
	return g.next
}

func (g *gate) leave() { g.waiting-- }

func (g *gate) open() {
	if g.waiting > 0 && g.next != nil { // whoever has been let out may not have left yet
		close(g.next)
		g.next = nil
	}
}

// change wakes everybody who waits; s.mu is held.
func (s *stream) change() {
	s.toRead.open()
	s.toWrite.open()
}

func (s *stream) write(b []byte) (int, error) {
	written := 0
	for {
		s.mu.Lock()
		switch {
		case s.err != nil || s.ended:
			err := s.err
			s.mu.Unlock()
			if err == nil {
				err = io.ErrClosedPipe
			}
			return written, err
		case expired(s.writeBy):
			s.mu.Unlock()
			return written, os.ErrDeadlineExceeded
		case s.held < streamBuffer:
			at := time.Now().Add(s.network.arrival(s.from.Addr(), s.to.Addr()))
			if at.Before(s.last) {
				at = s.last
			}
			s.last = at
			s.segments = append(s.segments, segment{append([]byte(nil), b...), at})
			s.held += len(b)
			if len(s.segments) == 1 {
				s.arrives.Reset(time.Until(at))
			}
			s.mu.Unlock()
			return len(b), nil
		}
		changed, until := s.toWrite.enter(), s.writeBy
		s.mu.Unlock()
		waitChange(changed, nil, until)
		s.mu.Lock()
		s.toWrite.leave()
		s.mu.Unlock()
	}
}

func (s *stream) read(b []byte) (int, error) {
	for {
		s.mu.Lock()
		ready := len(s.segments) > 0 && !s.stalled && !s.segments[0].at.After(time.Now())
		switch {
		case expired(s.readBy):
			s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case ready:
			head := &s.segments[0]
			n := copy(b, head.data)
			head.data = head.data[n:]
			if len(head.data) == 0 {
				s.segments = s.segments[1:]
				if len(s.segments) > 0 {
					s.arrives.Reset(time.Until(s.segments[0].at))
				}
			}
			s.held -= n
			s.change()
			s.mu.Unlock()
			return n, nil
		case s.err != nil:
			defer s.mu.Unlock()
			return 0, s.err
		case s.ended && len(s.segments) == 0 && !s.stalled:
			s.mu.Unlock()
			return 0, io.EOF
		}
		changed, until := s.toRead.enter(), s.readBy
		s.mu.Unlock()
		waitChange(changed, s.arrives.C, until)
		s.mu.Lock()
		s.toRead.leave()
		s.mu.Unlock()
	}
}

func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// waitChange returns at a change, an arrival, or at a moment, which may be zero for never.
func waitChange(changed <-chan struct{}, arrival <-chan time.Time, until time.Time) {
	var late <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-changed:
	case <-arrival:
	case <-late:
	}
}

// fail breaks the stream; the first error stays.
func (s *stream) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
		s.change()
	}
	s.mu.Unlock()
	s.forget()
}

// end says that no more is written. What is on its way still arrives.
func (s *stream) end() {
	s.mu.Lock()
	s.ended = true
	s.change()
	s.mu.Unlock()
}

func (s *stream) forget() {
	s.network.mu.Lock()
	delete(s.network.streams, s)
	s.network.mu.Unlock()
}

// setStalled holds back what is on its way. A stream that is stalled for too long breaks.
func (s *stream) setStalled(stalled bool) {
	s.mu.Lock()
	s.stalled = stalled
	s.stalls++
	which := s.stalls
	s.change()
	s.mu.Unlock()
	if stalled {
		time.AfterFunc(patience, func() {
			s.mu.Lock()
			still := s.stalls == which
			s.mu.Unlock()
			if still {
				s.fail(syscall.ETIMEDOUT)
			}
		})
	}
}

// conn is one end of a connection.
type conn struct {
	in, out       *stream
	local, remote netip.AddrPort
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }

// Close implements net.Conn: the other end reads to the end of what was written.
func (c *conn) Close() error {
	c.out.end()
	c.in.fail(net.ErrClosed)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.readBy = t
	c.in.toRead.open()
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.writeBy = t
	c.out.toWrite.open()
	return nil
}
