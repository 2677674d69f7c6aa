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
	writes, closed atomic.Int64
	written        atomic.Int64
}

func (h *held) SetWriteDeadline(time.Time) error { return nil }
func (h *held) Close() error                     { h.closed.Add(1); return nil }

func (h *held) Write(b []byte) (int, error) {
	h.writes.Add(1)
	h.written.Add(int64(len(b)))
	return len(b), <-h.letGo
}

// TestConnectionsToAPeerShareALine sends on four connections to a peer while the first message is on its way: the others leave together.
func TestConnectionsToAPeerShareALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line, dials := &held{letGo: make(chan error)}, 0
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

// TestABrokenLineIsReplaced lets a write fail: every connection on the line hears of it, and a new one gets a new line.
func TestABrokenLineIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, sound := &held{letGo: make(chan error, 1)}, &held{letGo: make(chan error, 1)}
		next := []net.Conn{broken, sound}
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			c := next[0]
			next = next[1:]
			return c, nil
		})
		one, other := mustConnect(t, tr, "b"), mustConnect(t, tr, "b")
		broken.letGo <- io.ErrClosedPipe
		for _, c := range []raftio.IConnection{one, other} {
			if err := c.SendMessageBatch(batchFrom("a", 1)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("got %v", err)
			}
		}
		again := mustConnect(t, tr, "b")
		one.Close()
		other.Close()
		sound.letGo <- nil
		if err := again.SendMessageBatch(batchFrom("a", 1)); err != nil {
			t.Error(err)
		}
		if mustConnect(t, tr, "b"); len(next) != 0 || len(tr.lines) != 1 {
			t.Errorf("%d lines, %d connections were not needed", len(tr.lines), len(next))
		}
	})
}

// TestASlowReaderHoldsUpWhoSends fills a line that nobody reads from: besides what is
// being written no more is kept in memory than the bound, and both are at most one message above it.
func TestASlowReaderHoldsUpWhoSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &held{letGo: make(chan error)}
		tr := dialTransport(func(context.Context) (net.Conn, error) { return line, nil })
		batch := batchFrom("a", 1)
		batch.Requests[0].Entries = []raftpb.Entry{{Index: 1, Cmd: make([]byte, 1<<20)}}
		var sent atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			c := mustConnect(t, tr, "b")
			all.Go(func() {
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
			return &held{}, nil
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
