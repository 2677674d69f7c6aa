package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/identity"
)

// Internal records in the meta shard. They are JSON and no API objects.
const (
	peerRecords  = "/shoal/peers/"     // peer ID → identity.PeerRecord
	nameRecords  = "/shoal/names/"     // node name → peer ID
	rangeRecords = "/shoal/podranges/" // a node's pod range, a.b.c.0 → peer ID
	leftRecords  = "/shoal/left/"      // peer ID of a peer that left or was removed → node name

	restartRecords = "/shoal/restarting/" // node name of a peer that will be back in a moment; the record expires by itself
)

// errNameTaken says that another peer has the name.
var errNameTaken = errors.New("the name is taken")

// registerPeer writes a peer down, and its name as taken, in one transaction. The same peer may do so again with new data. The name of a
// peer that does not live any more may be taken over, by a machine that was set up anew for instance: the old one is removed for good.
func registerPeer(ctx context.Context, host *consensus.Host, alive func(peerID string) bool, record identity.PeerRecord) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	for {
		owner, found, _, err := host.Get(ctx, consensus.MetaShard, nameRecords+record.Name, consensus.Linearizable)
		if err != nil {
			return err
		}
		ops := []store.Op{
			{Key: nameRecords + record.Name, Value: []byte(record.PeerID)},
			{Key: peerRecords + record.PeerID, Value: value},
		}
		if old := string(owner.Value); found && old != record.PeerID {
			if alive(old) {
				return fmt.Errorf("%w: %s belongs to peer %s, which is alive", errNameTaken, record.Name, old)
			}
			removal, err := removalOf(ctx, host, identity.PeerRecord{PeerID: old, Name: record.Name}, record.PeerID)
			if err != nil {
				return err
			}
			ops = append(removal, ops...)
		}
		result, err := host.Propose(ctx, consensus.MetaShard, store.Transaction{
			Conditions: []store.Condition{{Key: nameRecords + record.Name, Revision: owner.Mod}}, Ops: ops,
		})
		if err != nil || result.OK {
			return err
		}
	}
}

// nameTaken tells whether another peer that is alive has the name.
func nameTaken(ctx context.Context, host *consensus.Host, alive func(peerID string) bool, name, peerID string) (bool, error) {
	owner, found, _, err := host.Get(ctx, consensus.MetaShard, nameRecords+name, consensus.Linearizable)
	return found && string(owner.Value) != peerID && alive(string(owner.Value)), err
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

// recordedName is the name of a peer on record, "" without a record.
func recordedName(view consensus.View, peerID string) string {
	kv, found := view.Get(peerRecords + peerID)
	var record identity.PeerRecord
	if !found || json.Unmarshal(kv.Value, &record) != nil {
		return ""
	}
	return record.Name
}

// removePeer forgets a peer: its record, its name and its pod range. Its key is refused from then on.
func removePeer(ctx context.Context, host *consensus.Host, record identity.PeerRecord) error {
	ops, err := removalOf(ctx, host, record, "")
	if err != nil {
		return err
	}
	_, err = host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: ops})
	return err
}

// removalOf is what removes a peer. Its pod range goes to the heir of its name, whose Node object has that range written in it, or is free.
func removalOf(ctx context.Context, host *consensus.Host, record identity.PeerRecord, heir string) ([]store.Op, error) {
	ops := []store.Op{
		{Key: peerRecords + record.PeerID, Delete: true},
		{Key: nameRecords + record.Name, Delete: true},
		{Key: leavingPrefix + record.PeerID, Delete: true},
		{Key: leftRecords + record.PeerID, Value: []byte(record.Name)},
	}
	ranges, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: rangeRecords}, consensus.Linearizable)
	if err != nil {
		return nil, err
	}
	for _, kv := range ranges.KVs {
		if string(kv.Value) == record.PeerID {
			ops = append(ops, store.Op{Key: kv.Key, Value: []byte(heir), Delete: heir == ""})
		}
	}
	return ops, nil
}

// restartPatience is how long a peer that was asked to stop is waited for before its node counts as lost: its pods run on meanwhile, and
// a restart or an upgrade is over well within it.
const restartPatience = 15 * time.Second

// announceRestart asks the meta leader for patience.
func announceRestart(ctx context.Context, host *consensus.Host, node string) error {
	_, err := host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: []store.Op{{
		Key: restartRecords + node, Value: []byte(node), Expires: time.Now().Add(restartPatience).UnixMilli(),
	}}})
	return err
}

// withdrawRestart ends the patience once the node is back: if it dies now, nobody has to wait for it.
func withdrawRestart(ctx context.Context, host *consensus.Host, node string) error {
	_, announced, _, err := host.Get(ctx, consensus.MetaShard, restartRecords+node, consensus.Local)
	if err != nil || !announced {
		return err
	}
	_, err = host.Propose(ctx, consensus.MetaShard, store.Transaction{Ops: []store.Op{{Key: restartRecords + node, Delete: true}}})
	return err
}

// restarting lists the nodes that are to be waited for.
func restarting(ctx context.Context, host *consensus.Host, now time.Time) (map[string]bool, error) {
	list, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: restartRecords}, consensus.Local)
	if err != nil {
		return nil, err
	}
	nodes := map[string]bool{}
	for _, kv := range list.KVs {
		if kv.Expires > now.UnixMilli() {
			nodes[strings.TrimPrefix(kv.Key, restartRecords)] = true
		}
	}
	return nodes, nil
}

// forgetAfter is how long a peer has to make its Node object before the lack of one means anything.
const forgetAfter = time.Minute

// forgetGone removes the peers that gossip believes dead and that have no Node object any more.
func (p *Peer) forgetGone(ctx context.Context, hasNode func(name string) bool) error {
	records, err := listPeers(ctx, p.host)
	if err != nil {
		return err
	}
	for id, record := range records {
		if hasNode(record.Name) || p.alive(id) || time.Since(record.Joined) < forgetAfter {
			continue
		}
		if err := removePeer(ctx, p.host, record); err != nil {
			return err
		}
		p.log.Info("a peer without Node is removed from the cluster", "peer", id, "name", record.Name)
	}
	return nil
}

// left knows the peers whose keys count no more, although their certificates have not run out.
type left struct {
	lock  sync.RWMutex
	peers map[string]bool
}

// leftInterval is how often the list is read. It lies in the meta shard, usually in this process.
const leftInterval = 5 * time.Second

// Run reads the list until ctx ends.
func (l *left) Run(ctx context.Context, host *consensus.Host) error {
	for {
		if list, err := host.List(ctx, consensus.MetaShard, consensus.ListOptions{Prefix: leftRecords}, consensus.Local); err == nil {
			peers := make(map[string]bool, len(list.KVs))
			for _, kv := range list.KVs {
				peers[strings.TrimPrefix(kv.Key, leftRecords)] = true
			}
			l.lock.Lock()
			l.peers = peers
			l.lock.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(leftInterval):
		}
	}
}

// refuse is link.Config.Refuse.
func (l *left) refuse(peerID string) error {
	l.lock.RLock()
	defer l.lock.RUnlock()
	if l.peers[peerID] {
		return fmt.Errorf("peer %s left the cluster or was removed from it", peerID)
	}
	return nil
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
