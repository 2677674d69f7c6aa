package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftpb"
)

type named struct {
	net.Conn
	peer string
}

func (n named) PeerID() string { return n.peer }

func newTestTransport(got chan raftpb.MessageBatch) *transport {
	f := &transportFactory{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
	return f.Create(config.NodeHostConfig{}, func(b raftpb.MessageBatch) { got <- b }, func(raftpb.Chunk) bool { return true }).(*transport)
}

// serveBytes lets a transport read what a peer sent.
func serveBytes(t *transport, peer string, b []byte) error {
	ours, theirs := net.Pipe()
	go func() {
		theirs.Write(b) //nolint:errcheck // the reader may hang up early
		theirs.Close()
	}()
	defer ours.Close()
	return t.serve(named{ours, peer})
}

func frame(t testing.TB, b raftpb.MessageBatch) []byte {
	t.Helper()
	body, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{frameBatch}, uint32(len(body))), body...)
}

func batchFrom(peer string, replica uint64) raftpb.MessageBatch {
	return raftpb.MessageBatch{SourceAddress: peer, Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: 3, From: replica, To: 1}}}
}

func TestRaftMessagesArriveAsSent(t *testing.T) {
	got := make(chan raftpb.MessageBatch, 1)
	tr := newTestTransport(got)
	ours, theirs := net.Pipe()
	go tr.serve(named{theirs, "b"}) //nolint:errcheck // ends with the pipe
	tr.cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return ours, nil }
	c, err := tr.GetConnection(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := batchFrom("b", 2)
	sent.Requests[0].Entries = []raftpb.Entry{{Index: 7, Cmd: bytes.Repeat([]byte("x"), 3<<20)}}
	if err := c.SendMessageBatch(sent); err != nil {
		t.Fatal(err)
	}
	select {
	case b := <-got:
		if b.SourceAddress != "b" || !bytes.Equal(b.Requests[0].Entries[0].Cmd, sent.Requests[0].Entries[0].Cmd) {
			t.Error("the batch changed on its way")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing arrived")
	}
}

func TestPeersCannotSpeakForOthers(t *testing.T) {
	got := make(chan raftpb.MessageBatch, 10)
	tr := newTestTransport(got)
	if err := serveBytes(tr, "b", frame(t, batchFrom("b", 2))); errors.Is(err, errRaftFrame) {
		t.Fatalf("honest peer: %v", err)
	}
	for name, b := range map[string]raftpb.MessageBatch{
		"another peer's name":    batchFrom("a", 1),
		"another peer's replica": batchFrom("c", 2),
	} {
		if err := serveBytes(tr, "c", frame(t, b)); !errors.Is(err, errRaftFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(got) != 1 {
		t.Errorf("%d batches got through", len(got))
	}
}

func FuzzRaftFrames(f *testing.F) {
	f.Add(frame(f, batchFrom("b", 2)))
	f.Add([]byte{frameChunk, 0, 0, 0, 1, 0})
	f.Add([]byte{frameBatch, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(_ *testing.T, b []byte) {
		got := make(chan raftpb.MessageBatch, 1024)
		serveBytes(newTestTransport(got), "b", b) //nolint:errcheck // any error will do, a panic will not
	})
}

func FuzzWireMessages(f *testing.F) {
	codec, err := newWireCodec()
	if err != nil {
		f.Fatal(err)
	}
	seed, err := codec.Marshal(&call{Verb: verbPropose, Shard: 3, Command: []byte("x"), List: &ListOptions{Prefix: "p"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(_ *testing.T, b []byte) {
		var c call
		codec.Unmarshal(b, &c) //nolint:errcheck // any error will do, a panic will not
		var a answer
		codec.Unmarshal(b, &a) //nolint:errcheck // any error will do, a panic will not
	})
}

func TestFailuresKeepTheirKindBetweenPeers(t *testing.T) {
	for _, known := range wireErrors {
		if err := wireFailure(shardError(1, known, nil)).asError("b"); !errors.Is(err, known) {
			t.Errorf("%v became %v", known, err)
		}
	}
	var again *tryAgain
	if err := wireFailure(&tryAgain{cause: context.Canceled, uncertain: true}).asError("b"); !errors.As(err, &again) || !again.uncertain {
		t.Errorf("try again became %v", err)
	}
	if err := wireFailure(errNoReplica).asError("b"); !errors.As(err, &again) || again.uncertain {
		t.Errorf("no replica became %v", err)
	}
}

// TestMessagesThatNoPeerSendsAreDropped sends what a healthy peer never would.
func TestMessagesThatNoPeerSendsAreDropped(t *testing.T) {
	got := make(chan raftpb.MessageBatch, 10)
	tr := newTestTransport(got)
	tr.owner = func(_, replica uint64) string { return map[uint64]string{2: "b", 3: "c"}[replica] }
	with := func(change func(*raftpb.MessageBatch)) raftpb.MessageBatch {
		b := batchFrom("b", 2)
		b.Requests[0].Type = raftpb.Heartbeat
		change(&b)
		return b
	}
	for name, b := range map[string]raftpb.MessageBatch{
		"nobody's name":       with(func(b *raftpb.MessageBatch) { b.SourceAddress = "" }),
		"no sender":           with(func(b *raftpb.MessageBatch) { b.Requests[0].From = 0 }),
		"no receiver":         with(func(b *raftpb.MessageBatch) { b.Requests[0].To = 0 }),
		"a message to itself": with(func(b *raftpb.MessageBatch) { b.Requests[0].Type = raftpb.Unreachable }),
		"an unknown type":     with(func(b *raftpb.MessageBatch) { b.Requests[0].Type = 4711 }),
		"c's replica":         with(func(b *raftpb.MessageBatch) { b.Requests[0].From = 3 }),
	} {
		if err := serveBytes(tr, "b", frame(t, b)); !errors.Is(err, errRaftFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	chunk := raftpb.Chunk{ShardID: 3, From: 3}
	body, err := chunk.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	asFrame := append(binary.BigEndian.AppendUint32([]byte{frameChunk}, uint32(len(body))), body...)
	if err := serveBytes(tr, "b", asFrame); !errors.Is(err, errRaftFrame) {
		t.Errorf("a snapshot in c's name: %v", err)
	}
	if len(got) != 0 {
		t.Errorf("%d batches got through", len(got))
	}
	if err := serveBytes(tr, "c", frame(t, with(func(b *raftpb.MessageBatch) { b.SourceAddress, b.Requests[0].From = "c", 3 }))); errors.Is(err, errRaftFrame) {
		t.Errorf("c in its own name: %v", err)
	}
}

// TestALargeClaimCostsNothing claims frames of gigabytes and sends nothing.
func TestALargeClaimCostsNothing(t *testing.T) {
	tr := newTestTransport(make(chan raftpb.MessageBatch, 1))
	for _, size := range []uint32{maxRaftFrame, 1 << 31, 1<<32 - 1} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := serveBytes(tr, "b", binary.BigEndian.AppendUint32([]byte{frameBatch}, size))
		runtime.ReadMemStats(&after)
		if err == nil || after.TotalAlloc-before.TotalAlloc > 4<<20 {
			t.Errorf("%d bytes claimed: %d allocated, %v", size, after.TotalAlloc-before.TotalAlloc, err)
		}
	}
}
