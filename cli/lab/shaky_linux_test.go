package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestShakyLines counts what a line does to packets, and proves that a stream over it stays whole.
func TestShakyLines(t *testing.T) {
	l := emptyHosts(t, 2, 0)
	a, b := l.Peers[0], l.Peers[1]
	for _, step := range []struct {
		what              string
		line              Line
		late, twice, lost bool
	}{
		{what: "a good line"},
		{what: "a shaky one", line: Line{Delay: 2 * time.Millisecond, Jitter: 20 * time.Millisecond, Double: 0.2, Loss: 0.1}, late: true, twice: true, lost: true},
		{what: "another right after it", line: Line{Jitter: 5 * time.Millisecond}, late: true},
		{what: "mended"},
	} {
		if err := l.Shake(b, step.line); err != nil {
			t.Fatal(err)
		}
		got := datagrams(t, a, b, 500)
		seen, late, twice := map[uint32]int{}, false, false
		for i, number := range got {
			seen[number]++
			twice = twice || seen[number] > 1
			late = late || i > 0 && number < got[i-1]
		}
		if lost := len(seen) < 500; late != step.late || twice != step.twice || lost != step.lost {
			t.Errorf("%s: %d packets of 500 came; out of order %v, twice %v", step.what, len(seen), late, twice)
		}
		stream(t, a, b)
	}
}

// datagrams sends so many numbered ones and returns those that come, in order of coming.
func datagrams(t *testing.T, from, to *Peer, n uint32) (got []uint32) {
	t.Helper()
	var socket net.PacketConn
	if err := to.host.do(func() (err error) {
		socket, err = net.ListenPacket("udp", net.JoinHostPort(to.Address, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	conn, err := from.Dial(t.Context(), "udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 8)
		for {
			if size, _, err := socket.ReadFrom(buffer); err != nil {
				return // nothing came for a while
			} else if size == 4 {
				got = append(got, binary.BigEndian.Uint32(buffer))
			}
			_ = socket.SetReadDeadline(time.Now().Add(2 * time.Second))
		}
	}()
	for number := range n {
		if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, number)); err != nil {
			t.Fatal(err)
		}
		if number%20 == 0 {
			time.Sleep(time.Millisecond) // or the socket's buffer overflows
		}
	}
	_ = socket.SetReadDeadline(time.Now().Add(2 * time.Second))
	<-read
	return got
}

// stream sends a few megabytes over TCP and compares what comes.
func stream(t *testing.T, from, to *Peer) {
	t.Helper()
	var listener net.Listener
	if err := to.host.do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(to.Address, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write(sent)
	}()
	conn, err := from.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	sum := sha256.New()
	if _, err := io.Copy(sum, conn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if want := sha256.Sum256(sent); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("a stream came differently from how it was sent, or not in time")
	}
}
