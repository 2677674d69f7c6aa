package consensus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// A raft connection carries frames in one direction: kind, length (4 bytes, big
// endian), then a raftpb.MessageBatch or raftpb.Chunk.
const (
	frameBatch = 1
	frameChunk = 2
	// maxRaftFrame is above what dragonboat puts into one batch (64 MiB).
	maxRaftFrame = 72 << 20

	raftWriteTimeout = 5 * time.Second
)

// errRaftFrame reports a malformed frame; the connection it came on is closed.
var errRaftFrame = errors.New("malformed raft frame")

// transportFactory makes dragonboat's transport over the peer's own connections. A
// raft address is a peer ID; dialling finds out where that peer is now.
type transportFactory struct {
	cfg Config
	// owner is the peer that holds a replica, "" where that is not known. Nil knows none.
	owner func(shard, replica uint64) string
	// leases sees every message that leaves or arrives. Nil lets all pass.
	leases *readLeases
}

func (f *transportFactory) Create(_ config.NodeHostConfig, batch raftio.MessageHandler, chunk raftio.ChunkHandler) raftio.ITransport {
	ctx, cancel := context.WithCancel(context.Background())
	return &transport{
		cfg: f.cfg, owner: f.owner, leases: f.leases, onBatch: batch, onChunk: chunk, ctx: ctx, cancel: cancel,
		conns: map[net.Conn]struct{}{}, lines: map[string]*raftLine{}, senders: map[replicaKey]sender{},
	}
}

func (f *transportFactory) Validate(peerID string) bool { return peerID != "" }

type replicaKey struct{ shard, replica uint64 }

type transport struct {
	cfg     Config
	owner   func(shard, replica uint64) string
	leases  *readLeases
	onBatch raftio.MessageHandler
	onChunk raftio.ChunkHandler
	ctx     context.Context
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]struct{}
	// lines are the connections to other peers.
	lines map[string]*raftLine
	// senders remembers which peer speaks for which replica. Replica IDs are never
	// reused, so this never changes; dragonboat would panic if it did.
	senders map[replicaKey]sender
}

func (t *transport) Name() string { return "shoal" }

func (t *transport) Start() error {
	l, err := t.cfg.Listen(ServiceRaft)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", ServiceRaft, err)
	}
	t.listener = l
	t.done.Go(func() { t.accept(l) })
	return nil
}

func (t *transport) Close() error {
	t.cancel()
	err := t.listener.Close()
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	t.done.Wait()
	return err
}

func (t *transport) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if t.ctx.Err() == nil {
				t.cfg.Logger.Error("raft listener stopped", "err", err)
			}
			return
		}
		t.mu.Lock()
		if t.ctx.Err() != nil {
			t.mu.Unlock()
			conn.Close()
			return
		}
		t.conns[conn] = struct{}{}
		t.mu.Unlock()
		t.done.Go(func() {
			err := t.serve(conn)
			conn.Close()
			t.mu.Lock()
			delete(t.conns, conn)
			t.mu.Unlock()
			if errors.Is(err, errRaftFrame) {
				t.cfg.Logger.Warn("raft connection dropped", "from", remotePeer(conn), "err", err)
			}
		})
	}
}

// remotePeer is the proven identity of the other side, "" where the connection has
// none.
func remotePeer(conn net.Conn) string {
	if c, ok := conn.(interface{ PeerID() string }); ok {
		return c.PeerID()
	}
	return ""
}

func (t *transport) serve(conn net.Conn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errRaftFrame, r)
		}
	}()
	r := bufio.NewReaderSize(conn, 64<<10)
	peer := remotePeer(conn)
	for {
		// raftpb keeps parts of what it decodes, so a body is never reused.
		kind, body, err := readRaftFrame(r)
		if err != nil {
			return err
		}
		switch kind {
		case frameBatch:
			var b raftpb.MessageBatch
			if err := b.Unmarshal(body); err != nil {
				return fmt.Errorf("%w: %w", errRaftFrame, err)
			}
			if err := t.vet(peer, &b); err != nil {
				return err
			}
			if t.leases != nil {
				b = t.leases.receiving(b)
			}
			// What dragonboat cannot stand in a message is the sender's fault.
			if err := guarded(func() error { t.onBatch(b); return nil }); err != nil {
				return fmt.Errorf("%w: %w", errRaftFrame, err)
			}
		case frameChunk:
			var c raftpb.Chunk
			if err := c.Unmarshal(body); err != nil {
				return fmt.Errorf("%w: %w", errRaftFrame, err)
			}
			if err := t.speaksFor(peer, replicaKey{c.ShardID, c.From}); err != nil {
				return err
			}
			err := guarded(func() error {
				if !t.onChunk(c) {
					return io.EOF
				}
				return nil
			})
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("%w: %w", errRaftFrame, err)
			}
		default:
			return fmt.Errorf("%w: kind %d", errRaftFrame, kind)
		}
	}
}

// vet refuses messages in another peer's name, and those that no peer sends.
func (t *transport) vet(peer string, b *raftpb.MessageBatch) error {
	if peer != "" && b.SourceAddress != peer {
		return fmt.Errorf("%w: peer %s speaks for %q", errRaftFrame, peer, b.SourceAddress)
	}
	for i := range b.Requests {
		m := &b.Requests[i]
		if m.From == 0 || m.To == 0 || internalMessages[m.Type] || m.Type > raftpb.LogQuery {
			return fmt.Errorf("%w: peer %s sends a message of type %v from replica %d to %d", errRaftFrame, b.SourceAddress, m.Type, m.From, m.To)
		}
		if err := t.speaksFor(b.SourceAddress, replicaKey{m.ShardID, m.From}); err != nil {
			return err
		}
	}
	return nil
}

// internalMessages are those that a replica makes for itself.
var internalMessages = map[raftpb.MessageType]bool{
	raftpb.LocalTick: true, raftpb.Election: true, raftpb.LeaderHeartbeat: true, raftpb.ConfigChangeEvent: true,
	raftpb.SnapshotStatus: true, raftpb.Unreachable: true, raftpb.CheckQuorum: true, raftpb.BatchedReadIndex: true, raftpb.LogQuery: true,
}

// speaksFor refuses a peer that speaks for a replica of another: as the group has its
// members, and as long as that is not known, as it was heard first.
func (t *transport) speaksFor(peer string, key replicaKey) error {
	t.mu.Lock()
	known, heard := t.senders[key]
	t.mu.Unlock()
	if known == (sender{peer, true}) {
		return nil
	}
	holder := ""
	if t.owner != nil {
		holder = t.owner(key.shard, key.replica)
	}
	proven := holder != ""
	if !proven && heard {
		holder = known.peer
	}
	if holder != "" && holder != peer {
		return fmt.Errorf("%w: peer %s speaks for shard %d replica %d of %s", errRaftFrame, peer, key.shard, key.replica, holder)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.senders[key] = sender{peer, proven}
	return nil
}

// sender is the peer that speaks for a replica; proven says that the group has it so.
type sender struct {
	peer   string
	proven bool
}

// readRaftFrame reads one frame. For large ones memory grows with what arrives, not
// with what the length claims.
func readRaftFrame(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	switch {
	case n > maxRaftFrame:
		return 0, nil, fmt.Errorf("%w: %d bytes", errRaftFrame, n)
	case n <= 1<<20:
		body = make([]byte, n)
		_, err = io.ReadFull(r, body)
	default:
		var buf bytes.Buffer
		_, err = io.CopyN(&buf, r, int64(n))
		body = buf.Bytes()
	}
	return head[0], body, err
}
