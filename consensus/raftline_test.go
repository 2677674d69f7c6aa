package consensus

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// dialTransport is a transport whose calls dial answers.
func dialTransport(dial func(ctx context.Context) (net.Conn, error)) *transport {
	f := &transportFactory{cfg: Config{
		Logger: slog.New(slog.DiscardHandler),
		Dial:   func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	return f.Create(config.NodeHostConfig{}, func(raftpb.MessageBatch) {}, func(raftpb.Chunk) bool { return true }).(*transport)
}

func mustConnect(t testing.TB, tr *transport, target string) raftio.IConnection {
	t.Helper()
	c, err := tr.GetConnection(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// held is a connection whose writes wait, and then fail if so told. It counts them and what they carry.
type held struct {
	net.Conn
	letGo          chan error
	gone           chan struct{} // ends reads
	writes, closed atomic.Int64
	written        atomic.Int64
}

func newHeld(room int) *held { return &held{letGo: make(chan error, room), gone: make(chan struct{})} }

func (h *held) Read([]byte) (int, error) { <-h.gone; return 0, io.EOF }

func (h *held) SetWriteDeadline(time.Time) error { return nil }

func (h *held) Close() error {
	if h.closed.Add(1) == 1 {
		close(h.gone)
	}
	return nil
}

func (h *held) Write(b []byte) (int, error) {
	h.writes.Add(1)
	h.written.Add(int64(len(b)))
	return len(b), <-h.letGo
}

// TestConnectionsToAPeerShareALine sends on four connections to a peer while the first message is on its way: the others leave together.
func TestConnectionsToAPeerShareALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line, dials := newHeld(0), 0
		tr := dialTransport(func(context.Context) (net.Conn, error) { dials++; return line, nil })
		var conns []raftio.IConnection
		for range 4 {
			conns = append(conns, mustConnect(t, tr, "b"))
		}
		first := make(chan error, 1)
		go func() { first <- conns[0].SendMessageBatch(batchFrom("a", 1)) }()
		synctest.Wait()
		for _, c := range conns[1:] {
			if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil {
				t.Fatal(err)
			}
		}
		line.letGo <- nil
		line.letGo <- nil
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		if size := int64(len(frame(t, batchFrom("a", 1)))); line.writes.Load() != 2 || line.written.Load() != 4*size || dials != 1 {
			t.Errorf("%d calls and %d writes with %d bytes; want 1, 2 and %d", dials, line.writes.Load(), line.written.Load(), 4*size)
		}
		for i, c := range conns {
			if line.closed.Load() != 0 {
				t.Errorf("closed with %d connections on it", 4-i)
			}
			c.Close()
		}
		if line.closed.Load() != 1 || len(tr.lines) != 0 {
			t.Errorf("closed %d times, %d lines are left", line.closed.Load(), len(tr.lines))
		}
	})
}

// TestABrokenLineIsReplaced lets a write fail: every connection that has just sent something hears of it, one that has been silent goes on
// with another line, and so does a new one.
func TestABrokenLineIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, sound := newHeld(3), newHeld(3)
		next := []net.Conn{broken, sound}
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			c := next[0]
			next = next[1:]
			return c, nil
		})
		one, other, silent := mustConnect(t, tr, "b"), mustConnect(t, tr, "b"), mustConnect(t, tr, "b")
		send := func(c raftio.IConnection, want error) {
			t.Helper()
			if err := c.SendMessageBatch(batchFrom("a", 1)); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		broken.letGo <- nil
		send(silent, nil)
		time.Sleep(lineIdle + 1)
		broken.letGo <- nil
		send(other, nil)
		broken.letGo <- io.ErrClosedPipe
		send(one, io.ErrClosedPipe)
		send(other, io.ErrClosedPipe)
		again := mustConnect(t, tr, "b")
		one.Close()
		other.Close()
		for range 3 {
			sound.letGo <- nil
		}
		send(again, nil)
		send(silent, nil)
		if len(next) != 0 || len(tr.lines) != 1 || broken.closed.Load() == 0 {
			t.Errorf("%d lines, %d connections were not needed, the broken one was closed %d times", len(tr.lines), len(next), broken.closed.Load())
		}
		mustConnect(t, tr, "b").Close()
		again.Close()
		silent.Close()
		if sound.closed.Load() != 1 || len(tr.lines) != 0 {
			t.Errorf("%d lines are left, the sound one was closed %d times", len(tr.lines), sound.closed.Load())
		}
	})
}

// TestALineEndsWithThePeer: that a peer has gone is noticed while nothing is sent, so that the first message after its return arrives.
func TestALineEndsWithThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newHeld(1), newHeld(1)
		next := []net.Conn{before, after}
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			c := next[0]
			next = next[1:]
			return c, nil
		})
		c := mustConnect(t, tr, "b")
		before.Close() // by the other side
		synctest.Wait()
		after.letGo <- nil
		if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil || before.writes.Load() != 0 || after.writes.Load() != 1 {
			t.Errorf("%v, %d messages to the peer that had gone and %d to the one that is there", err, before.writes.Load(), after.writes.Load())
		}
		c.Close()
	})
}

// TestASlowReaderHoldsUpWhoSends fills a line that nobody reads from: besides what is
// being written no more is kept in memory than the bound, and both are at most one message above it.
func TestASlowReaderHoldsUpWhoSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newHeld(0)
		tr := dialTransport(func(context.Context) (net.Conn, error) { return line, nil })
		batch := batchFrom("a", 1)
		batch.Requests[0].Entries = []raftpb.Entry{{Index: 1, Cmd: make([]byte, 1<<20)}}
		var sent atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			c := mustConnect(t, tr, "b")
			all.Go(func() {
				defer c.Close()
				for range 8 {
					if err := c.SendMessageBatch(batch); err != nil {
						t.Error(err)
					}
					sent.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := sent.Load(); n > 2*(linePending>>20+1) {
			t.Errorf("%d messages of 1 MiB are in memory", n)
		}
		close(line.letGo)
		all.Wait()
		if line.written.Load() < 32<<20 {
			t.Errorf("%d bytes arrived", line.written.Load())
		}
	})
}

// TestAFailedCallIsForgotten lets the first calls of a peer fail.
func TestAFailedCallIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			if calls++; calls < 3 {
				return nil, io.ErrUnexpectedEOF
			}
			return newHeld(0), nil
		})
		mustConnect(t, tr, "b").Close()
		if calls != 3 || len(tr.lines) != 0 {
			t.Errorf("%d calls, %d lines are left", calls, len(tr.lines))
		}
		tr.cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 2 {
			if _, err := tr.GetConnection(impatient, "b"); !errors.Is(err, context.DeadlineExceeded) || len(tr.lines) != 0 {
				t.Errorf("%v, %d lines are left", err, len(tr.lines))
			}
		}
	})
}
