package consensus_test

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// chunkFrame is one piece of a snapshot as it comes over the peers' port (transport.go).
func chunkFrame(t testing.TB, c raftpb.Chunk) []byte {
	t.Helper()
	body, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{2}, uint32(len(body))), body...)
}

// FuzzSnapshotChunks sends pieces of snapshots to a host that runs: dragonboat checks and keeps them itself, so it is asked for real. What
// comes of one that makes no sense is at most a connection that is dropped.
func FuzzSnapshotChunks(f *testing.F) {
	network := consensustest.NewNetwork()
	h := network.Open(f, "a", f.TempDir(), nil)
	consensustest.Found(f, h)
	if _, err := h.Propose(within(f, patience), 1, put("k", "v")); err != nil {
		f.Fatal(err)
	}
	whole := raftpb.Chunk{
		ShardID: 1, ReplicaID: 1, From: 2, DeploymentId: consensus.DeploymentID(h), BinVer: raftio.TransportBinVersion,
		ChunkSize: 16, ChunkCount: 1, Data: []byte("0123456789abcdef"), Index: 1000, Term: 9, Filepath: "snapshot", FileSize: 16,
		Membership: raftpb.Membership{ConfigChangeId: 3, Addresses: map[uint64]string{1: "a", 2: "b"}},
	}
	f.Add(chunkFrame(f, whole))
	second, poison, elsewhere, file := whole, whole, whole, whole
	second.ChunkId, second.ChunkCount = 1, 3
	poison.ChunkCount = raftpb.PoisonChunkCount
	elsewhere.Filepath = "../../../consensus.json"
	file.HasFileInfo, file.FileChunkCount = true, 1
	file.FileInfo = raftpb.SnapshotFile{Filepath: "/etc/passwd", FileSize: 16, FileId: 1}
	for _, c := range []raftpb.Chunk{second, poison, elsewhere, file, {}} {
		f.Add(chunkFrame(f, c))
		f.Add(append(chunkFrame(f, whole), chunkFrame(f, c)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := network.Dial(ctx, "b", "a", consensus.ServiceRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(b) //nolint:errcheck // the host may hang up at any time
		mustGet(t, h, 1, "k", "v")
		if err := h.Failed(canceled()); err != nil {
			t.Fatal(err)
		}
	})
}
