package consensus

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// linePending is how much may wait on a line while it writes, in bytes; who comes then waits as well.
const linePending = 4 << 20

// raftLine is a connection that raft sends on. dragonboat spreads a host's shards over four connections to each peer, with a goroutine for
// each; here these share one line. What they have to say at the same moment is collected and leaves with one write, so that a peer with
// many shards is woken once and not four times, and less is spent on TLS records and system calls.
type raftLine struct {
	log  *slog.Logger
	gone func(*raftLine) // takes it out of the transport's table

	// dialled is closed when conn or err is set.
	dialled chan struct{}
	conn    net.Conn

	mu sync.Mutex
	// room wakes those who wait for pending to be written.
	room *sync.Cond
	// users are the connections that dragonboat has on the line.
	users int
	// err is why the line cannot be used any more.
	err     error
	writing bool
	// pending is what is to be written, spare a buffer for the next.
	pending, spare []byte
}

func newRaftLine(log *slog.Logger, gone func(*raftLine)) *raftLine {
	l := &raftLine{log: log, gone: gone, dialled: make(chan struct{}), users: 1}
	l.room = sync.NewCond(&l.mu)
	return l
}

// dial connects the line, once, for its first user.
func (l *raftLine) dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) error {
	conn, err := dial(ctx)
	l.mu.Lock()
	l.conn, l.err = conn, err
	l.mu.Unlock()
	close(l.dialled)
	if err != nil {
		l.release()
	}
	return err
}

// await waits until the line is dialled, for a user that joined.
func (l *raftLine) await(ctx context.Context) error {
	var err error
	select {
	case <-l.dialled:
		l.mu.Lock()
		err = l.err
		l.mu.Unlock()
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		l.release()
	}
	return err
}

// release gives one connection on the line back. The last closes it.
func (l *raftLine) release() {
	l.mu.Lock()
	l.users--
	last, conn := l.users == 0, l.conn
	l.mu.Unlock()
	if !last {
		return
	}
	l.gone(l)
	if conn != nil {
		l.hangUp()
	}
}

// watch ends the line when the other side is gone, also while nothing is sent: nobody writes on it but this side.
func (l *raftLine) watch() {
	_, err := l.conn.Read(make([]byte, 1))
	if err == nil {
		err = fmt.Errorf("%w: an answer", errRaftFrame)
	}
	l.mu.Lock()
	broken := l.err != nil
	if !broken {
		l.err = err
	}
	l.room.Broadcast()
	l.mu.Unlock()
	if !broken {
		l.hangUp()
	}
}

func (l *raftLine) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

func (l *raftLine) hangUp() {
	if err := l.conn.Close(); err != nil {
		l.log.Debug("close raft connection", "err", err)
	}
}

// join takes a further connection on the line; it returns false if that is over.
func (l *raftLine) join() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == 0 || l.err != nil {
		return false
	}
	l.users++
	return true
}

type raftMessage interface {
	Size() int
	MarshalTo([]byte) (int, error)
}

// send puts a frame on the line. Whoever finds it idle writes, for itself and for all who come meanwhile; the others do not wait. A write
// that fails is told to whoever sends next: raft's messages may be lost.
func (l *raftLine) send(kind byte, m raftMessage) error {
	n := m.Size()
	if n > maxRaftFrame {
		return fmt.Errorf("%w: %d bytes to send", errRaftFrame, n)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing && len(l.pending) > linePending && l.err == nil {
		l.room.Wait()
	}
	if l.err != nil {
		return l.err
	}
	if err := l.add(kind, n, m); err != nil || l.writing {
		return err
	}
	l.writing = true
	// Other shards of this host often have something to say to the peer at the same moment.
	l.mu.Unlock()
	runtime.Gosched()
	l.mu.Lock()
	for len(l.pending) > 0 && l.err == nil {
		l.write()
	}
	l.writing = false
	l.room.Broadcast()
	return l.err
}

// add appends a frame to what is pending.
func (l *raftLine) add(kind byte, n int, m raftMessage) error {
	at := len(l.pending)
	b := slices.Grow(l.pending, n+5)[:at+n+5]
	b[at] = kind
	binary.BigEndian.PutUint32(b[at+1:], uint32(n))
	if _, err := m.MarshalTo(b[at+5:]); err != nil {
		return err
	}
	l.pending = b
	return nil
}

// write writes what is pending. It lets go of the mutex meanwhile.
func (l *raftLine) write() {
	b := l.pending
	l.pending, l.spare = l.spare[:0], nil
	l.mu.Unlock()
	err := l.conn.SetWriteDeadline(time.Now().Add(raftWriteTimeout))
	if err == nil {
		_, err = l.conn.Write(b)
	}
	l.mu.Lock()
	if cap(b) <= linePending {
		l.spare = b
	}
	l.room.Broadcast()
	if err != nil {
		l.err = err
		l.mu.Unlock()
		l.hangUp() // TLS says goodbye, which may take a while
		l.mu.Lock()
	}
}

// raftConn is one of dragonboat's connections to a peer, on a line if there is one. dragonboat uses it from one goroutine.
//
// It never fails: what cannot be sent is lost, which raft allows for. dragonboat answers a failure with a silence towards that peer, on all
// connections, of up to one and a half seconds by the wall clock. A peer that came back meanwhile would not hear of an election, and if the
// clock is set back meanwhile, the silence lasts as long as it was ahead.
type raftConn struct {
	// find dials the peer, or joins the line to it.
	find func() (*raftLine, error)
	line *raftLine
	// failed is when the peer could not be dialled, zero if it was.
	failed time.Time
	log    *slog.Logger
	// leases sees what leaves. Nil lets all pass.
	leases *readLeases
}

func (c *raftConn) Close() {
	if c.line != nil {
		c.line.release()
	}
}

// redialEvery is how long a peer that could not be dialled is left alone.
const redialEvery = 100 * time.Millisecond

// usable finds a line that is not broken, another one if need be.
func (c *raftConn) usable() bool {
	if c.line != nil && !c.line.broken() {
		return true
	}
	if !c.failed.IsZero() && time.Since(c.failed) < redialEvery {
		return false
	}
	l, err := c.find()
	if err != nil {
		c.log.Debug("raft connection", "err", err)
		c.failed = time.Now()
		return false
	}
	if c.line != nil {
		c.line.release()
	}
	c.line, c.failed = l, time.Time{}
	return true
}

func (c *raftConn) SendMessageBatch(b raftpb.MessageBatch) error {
	if c.leases != nil {
		b = c.leases.sending(b)
	}
	if len(b.Requests) == 0 || !c.usable() {
		return nil
	}
	if err := c.line.send(frameBatch, &b); err != nil {
		c.log.Debug("raft messages are lost", "err", err)
	}
	return nil
}

// GetConnection is for messages, of many shards.
func (t *transport) GetConnection(ctx context.Context, target string) (raftio.IConnection, error) {
	find := func() (*raftLine, error) { return t.shared(ctx, target) }
	return &raftConn{find: find, log: t.cfg.Logger, leases: t.leases}, nil
}

// shared is the peer's line, which is dialled if there is none.
func (t *transport) shared(ctx context.Context, target string) (*raftLine, error) {
	t.mu.Lock()
	l, ok := t.lines[target]
	joined := ok && l.join()
	if !joined {
		l = newRaftLine(t.cfg.Logger, func(l *raftLine) { t.drop(target, l) })
		t.lines[target] = l
	}
	t.mu.Unlock()
	if joined {
		if err := l.await(ctx); err != nil {
			return nil, err
		}
		return l, nil
	}
	if err := l.dial(ctx, t.dialler(target)); err != nil {
		return nil, err
	}
	t.done.Go(l.watch)
	return l, nil
}

// drop forgets a peer's line, if it is still that one.
func (t *transport) drop(target string, l *raftLine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines[target] == l {
		delete(t.lines, target)
	}
}

// snapshotConn is a line for one snapshot. It never fails either: the rest of what cannot be sent is lost, and the leader finds out from the
// follower, which goes on asking for what it lacks.
type snapshotConn struct {
	line *raftLine
	log  *slog.Logger
	lost bool
}

func (c *snapshotConn) Close() {
	if c.line != nil {
		c.line.release()
	}
}

func (c *snapshotConn) SendChunk(chunk raftpb.Chunk) error {
	if c.lost {
		return nil
	}
	if err := c.line.send(frameChunk, &chunk); err != nil {
		c.log.Warn("a snapshot could not be sent", "shard", chunk.ShardID, "replica", chunk.ReplicaID, "err", err)
		c.lost = true
	}
	return nil
}

// GetSnapshotConnection gives every snapshot a line of its own, or it would hold up the others.
func (t *transport) GetSnapshotConnection(ctx context.Context, target string) (raftio.ISnapshotConnection, error) {
	l := newRaftLine(t.cfg.Logger, func(*raftLine) {})
	if err := l.dial(ctx, t.dialler(target)); err != nil {
		t.cfg.Logger.Warn("a snapshot could not be sent", "peer", target, "err", err)
		return &snapshotConn{log: t.cfg.Logger, lost: true}, nil
	}
	return &snapshotConn{line: l, log: t.cfg.Logger}, nil
}

func (t *transport) dialler(target string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, raftWriteTimeout)
		defer cancel()
		return t.cfg.Dial(ctx, target, ServiceRaft)
	}
}
