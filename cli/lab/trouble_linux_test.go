package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// emptyHosts are a lab's hosts with nothing on them.
func emptyHosts(t *testing.T, n int, disk int64) *Lab {
	t.Helper()
	l := &Lab{cfg: Config{Peers: n, Disk: disk}}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := leftovers(l, nil); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	if err := l.makeNetwork(); err != nil {
		t.Fatal(err)
	}
	return l
}

// answering accepts connections on a host and answers one byte to each.
func answering(t *testing.T, peer *Peer) string {
	t.Helper()
	var listener net.Listener
	address := net.JoinHostPort(peer.Address, "7")
	if err := peer.host.do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Write([]byte{1})
			}()
		}
	}()
	return address
}

func reaches(t *testing.T, from *Peer, address string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(700 * time.Millisecond))
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err == nil
}

func TestTroubleDropsOnlyWhatItNames(t *testing.T) {
	l := emptyHosts(t, 3, 0)
	a, b, c := l.Peers[0], l.Peers[1], l.Peers[2]
	address := answering(t, b)
	check := func(what string, fromA, fromB, fromC bool) {
		t.Helper()
		for _, want := range []struct {
			peer *Peer
			ok   bool
		}{{a, fromA}, {b, fromB}, {c, fromC}} {
			if reaches(t, want.peer, address) != want.ok {
				t.Errorf("%s: %s reaches %s: %v", what, want.peer.Name, b.Name, !want.ok)
			}
		}
	}
	for _, step := range []struct {
		what                string
		paths               []Path
		fromA, fromB, fromC bool
	}{
		{"no trouble", nil, true, true, true},
		{"nothing from a", []Path{{From: a, To: b, Loss: 1}}, false, true, true},
		{"no answers to c", []Path{{From: b, To: c, Loss: 1}}, true, true, false},
		{"everything from a is kept", []Path{{From: a, To: b, Loss: 0}}, true, true, true},
		{"healed", nil, true, true, true},
	} {
		if err := l.Trouble(step.paths...); err != nil {
			t.Fatal(err)
		}
		check(step.what, step.fromA, step.fromB, step.fromC)
	}
}

// TestLossIsAShare counts packets that arrive.
func TestLossIsAShare(t *testing.T) {
	l := emptyHosts(t, 2, 0)
	a, b := l.Peers[0], l.Peers[1]
	var socket net.PacketConn
	if err := b.host.do(func() (err error) {
		socket, err = net.ListenPacket("udp", net.JoinHostPort(b.Address, "7"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := l.Trouble(Path{From: a, To: b, Loss: 0.3}); err != nil {
		t.Fatal(err)
	}
	conn, err := a.Dial(t.Context(), "udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const sent = 2000
	arrived, all := 0, make(chan struct{})
	go func() {
		defer close(all)
		buffer := make([]byte, 8)
		for {
			// The two bytes that end it come over the line when it is sound again, behind all others.
			size, _, err := socket.ReadFrom(buffer)
			if err != nil || size == 2 {
				return
			}
			arrived++
		}
	}()
	for n := range sent {
		if _, err := conn.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if n%100 == 0 {
			time.Sleep(time.Millisecond) // or the socket's buffer overflows
		}
	}
	if err := errors.Join(l.Trouble(), socket.SetReadDeadline(time.Now().Add(soon))); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{1, 2}); err != nil {
		t.Fatal(err)
	}
	<-all
	if share := float64(sent-arrived) / sent; share < 0.25 || share > 0.35 {
		t.Errorf("%.0f %% of %d packets were lost, wanted 30 %%", 100*share, sent)
	}
}

func TestThinLines(t *testing.T) {
	l := emptyHosts(t, 2, 0)
	address := answering(t, l.Peers[1])
	for _, rate := range []uint64{50_000, 0, 0} {
		if err := l.Throttle(l.Peers[1], rate); err != nil {
			t.Fatal(err)
		}
		if !reaches(t, l.Peers[0], address) {
			t.Errorf("nothing comes through at %d", rate)
		}
	}
}

// TestBrokenDisks: a broken disk refuses what is written, and brought back it holds what was synced and nothing else.
func TestBrokenDisks(t *testing.T) {
	l := emptyHosts(t, 1, 64<<20)
	peer := l.Peers[0]
	write := func(name string, sync bool) error {
		file, err := os.Create(filepath.Join(peer.Dir, name))
		if err != nil {
			return err
		}
		defer file.Close()
		if _, err := file.WriteString("text"); err != nil || !sync {
			return err
		}
		return file.Sync()
	}
	if err := write("kept", true); err != nil {
		t.Fatal(err)
	}
	if err := write("forgotten", false); err != nil {
		t.Fatal(err)
	}
	if err := peer.BreakDisk(); err != nil {
		t.Fatal(err)
	}
	if err := write("refused", true); !errors.Is(err, syscall.EIO) {
		t.Errorf("writing to a broken disk: %v", err)
	}
	if err := peer.RepairDisk(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(peer.Dir, "kept")); err != nil || string(text) != "text" {
		t.Errorf("what was synced is %q, %v", text, err)
	}
	for _, name := range []string{"forgotten", "refused"} {
		if _, err := os.Stat(filepath.Join(peer.Dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s, which was never synced, is there: %v", name, err)
		}
	}
	if err := peer.FillDisk(); err != nil {
		t.Fatal(err)
	}
	if err := write("too much", true); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("writing to a full disk: %v", err)
	}
	if err := errors.Join(peer.FreeDisk(), write("enough", true)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
