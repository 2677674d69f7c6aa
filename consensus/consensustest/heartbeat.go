package consensustest

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// BrokenHeartbeat is what a peer writes to a connection to another one's consensus.ServiceRaft in order to break an invariant of one replica
// there: in the name of its own replica, from, it leads the shard in a term far ahead, and says to the replica to that entries are committed
// which nobody has. dragonboat takes that for the end of the world, before it notes the term.
func BrokenHeartbeat(cluster, peer string, shard, from, to uint64) ([]byte, error) {
	deployment := fnv.New64a() // as consensus tells clusters apart
	_, _ = deployment.Write([]byte(cluster))
	batch := raftpb.MessageBatch{
		DeploymentId: deployment.Sum64() | 1, BinVer: raftio.TransportBinVersion, SourceAddress: peer,
		Requests: []raftpb.Message{{Type: raftpb.Heartbeat, ShardID: shard, From: from, To: to, Term: 1 << 40, Commit: 1 << 40}},
	}
	body, err := batch.Marshal()
	if err != nil {
		return nil, err
	}
	frame := binary.BigEndian.AppendUint32([]byte{1}, uint32(len(body))) // a batch of messages, and its length
	return append(frame, body...), nil
}
