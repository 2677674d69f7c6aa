package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/identity"
)

// Internal records in the meta shard. They are JSON and no API objects.
const (
	peerRecords  = "/shoal/peers/"     // peer ID → identity.PeerRecord
	nameRecords  = "/shoal/names/"     // node name → peer ID
	rangeRecords = "/shoal/podranges/" // a node's pod range, a.b.c.0 → peer ID
)

// errNameTaken says that another peer has the name.
var errNameTaken = errors.New("the name is taken")

// registerPeer writes a peer down, and its name as taken, in one transaction. The same peer may do so again with new data.
func registerPeer(ctx context.Context, host *consensus.Host, record identity.PeerRecord) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	for {
		owner, found, _, err := host.Get(ctx, consensus.MetaShard, nameRecords+record.Name, consensus.Linearizable)
		if err != nil {
			return err
		}
		if found && string(owner.Value) != record.PeerID {
			return fmt.Errorf("%w: %s belongs to peer %s", errNameTaken, record.Name, owner.Value)
		}
		result, err := host.Propose(ctx, consensus.MetaShard, store.Transaction{
			Conditions: []store.Condition{{Key: nameRecords + record.Name, Revision: owner.Mod}},
			Ops: []store.Op{
				{Key: nameRecords + record.Name, Value: []byte(record.PeerID)},
				{Key: peerRecords + record.PeerID, Value: value},
			},
		})
		if err != nil || result.OK {
			return err
		}
	}
}

// nameTaken tells whether another peer has the name.
func nameTaken(ctx context.Context, host *consensus.Host, name, peerID string) (bool, error) {
	owner, found, _, err := host.Get(ctx, consensus.MetaShard, nameRecords+name, consensus.Linearizable)
	return found && string(owner.Value) != peerID, err
}

// listPeers reads every peer's record, by peer ID.
func listPeers(ctx context.Context, host *consensus.Host) (map[string]identity.PeerRecord, error) {
	list, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: peerRecords}, consensus.Local)
	if err != nil {
		return nil, err
	}
	records := make(map[string]identity.PeerRecord, len(list.KVs))
	for _, kv := range list.KVs {
		var record identity.PeerRecord
		if err := json.Unmarshal(kv.Value, &record); err != nil {
			return nil, fmt.Errorf("record %s: %w", kv.Key, err)
		}
		records[strings.TrimPrefix(kv.Key, peerRecords)] = record
	}
	return records, nil
}

// removePeer forgets a peer: its record, its name and its pod range.
func removePeer(ctx context.Context, host *consensus.Host, record identity.PeerRecord) error {
	ops := []store.Op{
		{Key: peerRecords + record.PeerID, Delete: true},
		{Key: nameRecords + record.Name, Delete: true},
	}
	ranges, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: rangeRecords}, consensus.Linearizable)
	if err != nil {
		return err
	}
	for _, kv := range ranges.KVs {
		if string(kv.Value) == record.PeerID {
			ops = append(ops, store.Op{Key: kv.Key, Delete: true})
		}
	}
	_, err = host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: ops})
	return err
}

// claimPodRange returns this peer's range of pod addresses, and takes the first free one if it has none yet. Two peers cannot take the
// same: the record's key is the range, and it is written on the condition that it does not exist.
func claimPodRange(ctx context.Context, host *consensus.Host, peerID string, cluster netip.Prefix) (netip.Prefix, error) {
	for {
		list, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: rangeRecords}, consensus.Linearizable)
		if err != nil {
			return netip.Prefix{}, err
		}
		taken := make(map[string]string, len(list.KVs))
		for _, kv := range list.KVs {
			taken[strings.TrimPrefix(kv.Key, rangeRecords)] = string(kv.Value)
		}
		choice, mine, err := choosePodRange(cluster, peerID, taken)
		if err != nil || mine {
			return choice, err
		}
		key := rangeRecords + choice.Addr().String()
		result, err := host.Propose(ctx, consensus.MetaShard, store.Transaction{
			Conditions: []store.Condition{{Key: key}},
			Ops:        []store.Op{{Key: key, Value: []byte(peerID)}},
		})
		if err != nil || result.OK {
			return choice, err
		}
	}
}

// choosePodRange finds the range that a peer has, or the lowest free one. taken maps a range's first address to its peer.
func choosePodRange(cluster netip.Prefix, peerID string, taken map[string]string) (choice netip.Prefix, mine bool, err error) {
	for address := cluster.Masked().Addr(); cluster.Contains(address); address = nextRange(address) {
		candidate := netip.PrefixFrom(address, NodePrefixBits)
		owner, used := taken[address.String()]
		if used && owner == peerID {
			return candidate, true, nil
		}
		if !used && !choice.IsValid() {
			choice = candidate
		}
	}
	if !choice.IsValid() {
		return choice, false, fmt.Errorf("every /%d of the cluster CIDR %s is taken: the cluster cannot have more nodes", NodePrefixBits, cluster)
	}
	return choice, false, nil
}

// nextRange is the first address of the following range.
func nextRange(address netip.Addr) netip.Addr {
	b := address.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += 1 << (32 - NodePrefixBits)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
