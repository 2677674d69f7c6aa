package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// closedWithin tells whether the server closes the connection in time.
func closedWithin(conn net.Conn, limit time.Duration) error {
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("still open after %s", limit)
	}
	return nil
}

// alive asks the service through a fresh, proper connection.
func alive(t *testing.T, from, to *Link) {
	t.Helper()
	conn, err := from.Dial(t.Context(), to.config.Identity.ID, "raft")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ask(conn, "alive?"); err != nil {
		t.Fatal(err)
	}
}

func TestGarbageIsHarmless(t *testing.T) {
	a, b, _, _ := pair(t)
	echo(t, b, "raft")
	noise := make([]byte, 64<<10)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string][]byte{
		"nothing": nil, "HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "noise": noise,
		"a TLS record of 16 MB": {0x16, 0x03, 0x01, 0xff, 0xff}, "half a hello": {0x16, 0x03, 0x01, 0x00, 0x40, 0x01, 0x00},
		"SSH": []byte("SSH-2.0-x\r\n"),
	} {
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(bytes) // it may be refused halfway
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := closedWithin(conn, 5*time.Second); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
	alive(t, a, b)
}

func TestAnyBytesAreHarmless(t *testing.T) {
	a, b, _, _ := pair(t)
	echo(t, b, "raft")
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 0, 512).Draw(t, "body")
		if rapid.Bool().Draw(t, "looks like TLS") {
			body = append([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03}, body...)
		}
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(body)
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := closedWithin(conn, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	alive(t, a, b)
}

// Those who connect and say nothing, or one byte at a time, cost a bounded
// number of goroutines for a bounded time, and never the peers' own room.
func TestSlowHandshakes(t *testing.T) {
	cluster := found(t)
	where := &book{addresses: map[string]string{}}
	a := open(t, member(t, cluster, "a", time.Now()), where, nil)
	b := open(t, member(t, cluster, "b", time.Now()), where, func(c *Config) {
		c.HandshakeTimeout = 500 * time.Millisecond
		c.MaxHandshakesPerSource = 8
	})
	echo(t, b, "raft")
	var conns []net.Conn
	for range 16 {
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	trickle, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for trickle.Err() == nil {
			for _, conn := range conns {
				_, _ = conn.Write([]byte{0x16})
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	begin := time.Now()
	for i, conn := range conns {
		if err := closedWithin(conn, 5*time.Second); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	alive(t, a, b)
}

func TestSlots(t *testing.T) {
	s := slots{max: 3, maxPerSource: 2, taken: map[netip.Addr]int{}}
	one, two, three := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	for i := range 3 {
		if got := s.take(one); got != (i < 2) {
			t.Errorf("handshake %d of one source: %v", i, got)
		}
	}
	if !s.take(two) || s.take(three) {
		t.Error("there is not room for three in all")
	}
	s.release(one)
	if !s.take(three) || s.take(two) {
		t.Error("a released slot is not free")
	}
	for _, source := range []netip.Addr{one, two, three} {
		s.release(source)
	}
	if s.all != 0 || len(s.taken) != 0 {
		t.Errorf("left over: %d, %v", s.all, s.taken)
	}
}

// A dial must end with its context even when the other side is mute.
func TestDialEndsWithItsContext(t *testing.T) {
	a, b, where, _ := pair(t)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	where.set(b.config.Identity.ID, mute.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := a.Dial(ctx, b.config.Identity.ID, "raft"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	a, b, _, _ := pair(t)
	listener := echo(t, b, "raft")
	conn, err := a.Dial(t.Context(), b.config.Identity.ID, "raft")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ask(conn, "accepted?"); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := b.API().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("API accept after close: %v", err)
	}
	if _, err := b.Listen("store"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen after close: %v", err)
	}
	if _, err := ask(conn, "still there?"); err != nil {
		t.Errorf("a connection handed over before the close: %v", err)
	}
}
