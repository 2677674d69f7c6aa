package consensus

import (
	"context"
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

// TestABrokenLineIsReplaced lets a write fail: dragonboat, which would send nothing for a while, hears nothing of it, and what every
// connection sends next goes out on one new line.
func TestABrokenLineIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, sound := newHeld(3), newHeld(3)
		next := []net.Conn{broken, sound}
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			c := next[0]
			next = next[1:]
			return c, nil
		})
		one, other := mustConnect(t, tr, "b"), mustConnect(t, tr, "b")
		send := func(c raftio.IConnection) {
			t.Helper()
			if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil {
				t.Error(err)
			}
		}
		broken.letGo <- nil
		send(other)
		broken.letGo <- io.ErrClosedPipe
		send(one)
		for range 3 {
			sound.letGo <- nil
		}
		send(one)
		send(other)
		again := mustConnect(t, tr, "b")
		send(again)
		if broken.writes.Load() != 2 || sound.writes.Load() != 3 {
			t.Errorf("%d messages to the broken line and %d to the sound one", broken.writes.Load(), sound.writes.Load())
		}
		if len(next) != 0 || len(tr.lines) != 1 || broken.closed.Load() == 0 {
			t.Errorf("%d lines, %d connections were not needed, the broken one was closed %d times", len(tr.lines), len(next), broken.closed.Load())
		}
		for _, c := range []raftio.IConnection{one, other, again} {
			c.Close()
		}
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
		before.letGo <- nil
		if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil {
			t.Fatal(err)
		}
		before.Close() // by the other side
		synctest.Wait()
		after.letGo <- nil
		if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil || before.writes.Load() != 1 || after.writes.Load() != 1 {
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

// TestAPeerThatCannotBeReached is left alone for a moment after each call. dragonboat hears nothing of it: it would send nothing until some
// time of day.
func TestAPeerThatCannotBeReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, back := 0, newHeld(100)
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			if calls++; calls < 4 {
				return nil, io.ErrUnexpectedEOF
			}
			return back, nil
		})
		c := mustConnect(t, tr, "b")
		for range 35 {
			back.letGo <- nil
			if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(redialEvery / 10)
		}
		if calls != 4 || back.writes.Load() != 5 {
			t.Errorf("%d calls, %d messages arrived; want 4 and 5", calls, back.writes.Load())
		}
		c.Close()
		if len(tr.lines) != 0 {
			t.Errorf("%d lines are left", len(tr.lines))
		}
	})
}

// TestACallThatNobodyAnswers ends with the transport, and leaves nothing.
func TestACallThatNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := dialTransport(func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		ends, end := context.WithTimeout(t.Context(), time.Second)
		defer end()
		begun := time.Now()
		for range 2 {
			c, err := tr.GetConnection(ends, "b")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SendMessageBatch(batchFrom("a", 1)); err != nil || len(tr.lines) != 0 {
				t.Errorf("%v, %d lines are left", err, len(tr.lines))
			}
			c.Close()
		}
		if took := time.Since(begun); took != time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestASnapshotThatIsLost: neither a peer that is not there nor one that goes away in the middle of a snapshot makes raft's other messages
// to it wait.
func TestASnapshotThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newHeld(2)
		next := []net.Conn{nil, line}
		tr := dialTransport(func(context.Context) (net.Conn, error) {
			c := next[0]
			next = next[1:]
			if c == nil {
				return nil, io.ErrUnexpectedEOF
			}
			return c, nil
		})
		line.letGo <- nil
		line.letGo <- io.ErrClosedPipe
		for range 2 {
			c, err := tr.GetSnapshotConnection(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				if err := c.SendChunk(raftpb.Chunk{ShardID: 1}); err != nil {
					t.Error(err)
				}
			}
			c.Close()
		}
		if line.writes.Load() != 2 || line.closed.Load() == 0 {
			t.Errorf("%d chunks sent, closed %d times", line.writes.Load(), line.closed.Load())
		}
	})
}
