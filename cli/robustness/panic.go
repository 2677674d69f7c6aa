package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"shoal/cli/lab"
	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/peer/identity"
)

// peerPort is the peers' one port.
const peerPort = "7443"

// held is what a peer's consensus.json says of its replicas.
type held struct {
	Cluster  string `json:"cluster"`
	Peer     string `json:"peer"`
	Replicas []struct {
		Shard      uint64 `json:"shard"`
		Replica    uint64 `json:"replica"`
		Removing   bool   `json:"removing"`
		Quarantine string `json:"quarantine"`
	} `json:"replicas"`
}

// errNoDisk says that a peer's folder cannot be read now: another fault has broken its disk, or is putting another in its place.
var errNoDisk = errors.New("its disk is broken")

func readHeld(peer *lab.Peer) (held, error) {
	var h held
	text, err := os.ReadFile(filepath.Join(peer.Dir, "consensus", "consensus.json"))
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	if err != nil {
		return h, ofDisk(fmt.Errorf("the replicas of %s: %w", peer.Name, err))
	}
	return h, nil
}

// ofDisk makes an error errNoDisk if it is one that a broken disk, or none, gives.
func ofDisk(err error) error {
	if errors.Is(err, syscall.EIO) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errNoDisk, err)
	}
	return err
}

// replica is the peer's replica of a shard, 0 if it has none that works.
func (h held) replica(shard uint64) uint64 {
	for _, r := range h.Replicas {
		if r.Shard == shard && !r.Removing && r.Quarantine == "" {
			return r.Replica
		}
	}
	return 0
}

// breakReplica breaks a raft invariant of a peer's replica of a shard: the heartbeat comes in the name, and with the keys, of another peer
// that holds a replica too. It goes through the peer's own namespace, since the lines between the peers may be cut.
func breakReplica(ctx context.Context, victim, other *lab.Peer, shard uint64) error {
	to, err := readHeld(victim)
	if err != nil {
		return err
	}
	from, err := readHeld(other)
	if err != nil {
		return err
	}
	if to.replica(shard) == 0 || from.replica(shard) == 0 {
		return fmt.Errorf("%s and %s have no replica of shard %d each", victim.Name, other.Name, shard)
	}
	frame, err := consensustest.BrokenHeartbeat(from.Cluster, from.Peer, shard, from.replica(shard), to.replica(shard))
	if err != nil {
		return err
	}
	self, err := identity.Load(other.Dir, time.Now())
	if err != nil {
		return ofDisk(err)
	}
	exited := victim.Exited() // of this process: the next one starts at once
	raw, err := victim.Dial(ctx, "tcp", net.JoinHostPort(victim.Address, peerPort))
	if err != nil {
		return err
	}
	// Whom it tells is proved by the address, which is in the victim's own namespace.
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{consensus.ServiceRaft}, GetClientCertificate: self.GetClientCertificate, InsecureSkipVerify: true,
	})
	defer conn.Close()
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := conn.Write(frame); err != nil {
		return err
	}
	// A connection that is closed too soon takes the frame with it.
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		if pid := victim.Pid(); pid != 0 && syscall.Kill(pid, syscall.SIGQUIT) == nil {
			<-exited // its log says what it waited for
		}
		return fmt.Errorf("%s goes on after what breaks shard %d: %w", victim.Name, shard, ctx.Err())
	}
}

// onBoth lists the shards of which two peers have replicas that work.
func onBoth(a, b *lab.Peer) ([]uint64, error) {
	first, err := readHeld(a)
	if err != nil {
		return nil, err
	}
	second, err := readHeld(b)
	if err != nil {
		return nil, err
	}
	var shards []uint64
	for _, r := range first.Replicas {
		if first.replica(r.Shard) == r.Replica && second.replica(r.Shard) != 0 {
			shards = append(shards, r.Shard)
		}
	}
	return shards, nil
}

// panicLimit is how long a peer may take to end in order after an invariant was broken, on a busy machine.
const panicLimit = 30 * time.Second

// panicRaft breaks an invariant of one replica: the process ends in order, and the next one has all shards again. It takes another shard
// each time, so that no replica is quarantined, which would last for an hour if it happened twice.
func panicRaft(ctx context.Context, n *nemesis, p planned) error {
	if len(n.hosts) < 2 {
		return n.hold(ctx, p) // nobody else holds a replica
	}
	at := p.peers[0]
	victim := n.hosts[at]
	victim.excuse(true)
	defer victim.excuse(false)
	if err := victim.awaitUp(ctx); err != nil {
		return err
	}
	for i := 1; i < len(n.hosts); i++ {
		err := n.breakOne(ctx, victim, n.hosts[(at+i)%len(n.hosts)])
		if !errors.Is(err, errNoDisk) {
			return errors.Join(err, victim.awaitUp(ctx))
		}
	}
	return nil // nothing that could be broken now
}

// breakOne breaks a replica of one host in the name of another. Errors: errNoDisk for one whose disk is broken just now.
func (n *nemesis) breakOne(ctx context.Context, victim, other *host) error {
	shards, err := onBoth(victim.peer, other.peer)
	if err != nil || len(shards) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, panicLimit)
	defer cancel()
	return breakReplica(ctx, victim.peer, other.peer, n.unbroken(victim, shards))
}

// unbroken is the shard whose replica on a host was broken least often; it is noted as broken.
func (n *nemesis) unbroken(h *host, shards []uint64) uint64 {
	n.lock.Lock()
	defer n.lock.Unlock()
	least := shards[0]
	for _, shard := range shards {
		if n.broken[replicaOf{h, shard}] < n.broken[replicaOf{h, least}] {
			least = shard
		}
	}
	n.broken[replicaOf{h, least}]++
	return least
}

// replicaOf is one shard's replica on one host.
type replicaOf struct {
	host  *host
	shard uint64
}
