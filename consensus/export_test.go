package consensus

import (
	"context"
	"fmt"
	"net"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// ProposeRaw puts bytes into a shard's log as they are, past everything that looks at them first.
func ProposeRaw(h *Host, shard uint64, cmd []byte) error {
	request, err := h.nh.Propose(h.nh.GetNoOPSession(shard), cmd, writeAttempt)
	if err != nil {
		return err
	}
	defer request.Release()
	<-request.ResultC()
	return nil
}

// BreakMachine makes a replica's state machine panic at its next entry.
func BreakMachine(h *Host, shard uint64) error {
	r, ok := h.replica(shard)
	if !ok {
		return fmt.Errorf("no replica of shard %d", shard)
	}
	r.machine.Load().store.Store(nil)
	return nil
}

// rawConn is a raft connection to a peer, with nobody but the caller on it.
func rawConn(ctx context.Context, h *Host, peer string) (*raftConn, error) {
	l := newRaftLine(h.cfg.Logger, func(*raftLine) {})
	return &raftConn{line: l}, l.dial(ctx, func(ctx context.Context) (net.Conn, error) { return h.cfg.Dial(ctx, peer, ServiceRaft) })
}

// FaultLimit is faultLimit.
const FaultLimit = faultLimit

// Faults reads what a host wrote down.
func Faults(h *Host) []Fault { return h.disk.faults() }

// Answer lets a host answer a call of another peer's, encoded as on the wire; false if it is no call.
func Answer(ctx context.Context, h *Host, encoded []byte) bool {
	codec, err := newWireCodec()
	if err != nil {
		return false
	}
	var c call
	if codec.Unmarshal(encoded, &c) != nil {
		return false
	}
	h.server.call(ctx, &c)
	return true
}

// EncodedCall is a call as on the wire, to begin with.
func EncodedCall(shard uint64, command []byte) ([]byte, error) {
	codec, err := newWireCodec()
	if err != nil {
		return nil, err
	}
	return codec.Marshal(&call{Verb: verbPropose, Shard: shard, Key: "k", Command: command, List: &ListOptions{Prefix: "k"}, Watch: &WatchOptions{Prefix: "k"}})
}

// ProposeBrokenChange puts a change of membership into a shard's log that cannot be decoded. dragonboat panics over it without a word to
// its logger.
func ProposeBrokenChange(ctx context.Context, h *Host, shard uint64, peer string, replica uint64) error {
	r, ok := h.replica(shard)
	if !ok {
		return fmt.Errorf("no replica of shard %d", shard)
	}
	info, _ := h.leaders.get(shard)
	c, err := rawConn(ctx, h, peer)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SendMessageBatch(raftpb.MessageBatch{
		DeploymentId: h.nh.NodeHostConfig().DeploymentID, BinVer: raftio.TransportBinVersion, SourceAddress: h.cfg.PeerID,
		Requests: []raftpb.Message{{Type: raftpb.Propose, ShardID: shard, From: r.id, To: replica, Term: info.Term,
			Entries: []raftpb.Entry{{Type: raftpb.ConfigChangeEntry, Cmd: []byte{0xff, 0xff, 0xff}}}}},
	})
}

// DeploymentID is what raft's messages of a host's cluster carry.
func DeploymentID(h *Host) uint64 { return h.nh.NodeHostConfig().DeploymentID }

// StartEmptyMeta starts the meta shard's first replica, as a founding does, and writes nothing.
func StartEmptyMeta(h *Host) error {
	r := diskReplica{Shard: MetaShard, Replica: 1}
	if err := h.disk.put(r); err != nil {
		return err
	}
	return h.startReplica(r)
}

// FollowOnce reads the assignments, and follows them as long as that works.
func FollowOnce(ctx context.Context, h *Host) error { return h.followOnce(ctx) }

// Fail ends a host as a broken invariant does.
func Fail(h *Host) { h.fail(Fault{Kind: FaultRaft, What: "for a test"}) }

// Leased tells whether a host answers reads of a shard by its lease just now.
func Leased(h *Host, shard uint64) bool {
	r, ok := h.replica(shard)
	if !ok {
		return false
	}
	_, leased := h.leased(r)
	return leased
}

// Applied is the index of the newest log entry that the shard's replica here has applied.
func Applied(h *Host, shard uint64) uint64 {
	r, _ := h.replica(shard)
	return r.machine.Load().applied.Load()
}
