// Package shardmap holds the pure rules of where things are: which shard a
// namespace belongs to, which peers hold a shard's replicas, and which single
// change brings a raft group one step closer to its assignment.
//
// The records live in the meta shard under /shoal/.
package shardmap

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	// Prefix is where the assignments live: Prefix + shard number.
	Prefix = "/shoal/shards/"
	// NamespacePrefix is where namespaces' shards are recorded: NamespacePrefix +
	// namespace, the value is the shard number in decimal.
	NamespacePrefix = "/shoal/namespaces/"
)

// Replica is one assigned copy of a shard.
type Replica struct {
	// Peer is the ID of the peer that holds it.
	Peer string `json:"peer"`
	// ID is the raft replica ID, never reused within a shard.
	ID uint64 `json:"replicaID"`
	// Voter says that the replica is to vote. Every replica but a founder's starts
	// as a non-voting one and is promoted when it has caught up.
	Voter bool `json:"voter"`
	// Disk is the identity of the data folder that holds the replica, "" until its
	// peer has claimed it. A peer with another folder must not run it: what it
	// voted for is lost.
	Disk string `json:"disk,omitempty"`
}

// Assignment says which peers are to hold a shard.
type Assignment struct {
	Shard uint64 `json:"shard"`
	// Next is the lowest replica ID that was never given out.
	Next     uint64    `json:"next"`
	Replicas []Replica `json:"replicas"`
	// Former are replicas of earlier assignments that the group had not removed yet
	// when this one was made. A peer that is placed again while the group still has
	// its replica keeps it.
	Former []Replica `json:"former,omitempty"`
}

// Key is where a shard's assignment is recorded in the meta shard.
func Key(shard uint64) string { return Prefix + strconv.FormatUint(shard, 10) }

// Found is the assignment of a new shard to one peer.
func Found(shard uint64, peer, disk string) Assignment {
	return Assignment{Shard: shard, Next: 2, Replicas: []Replica{{Peer: peer, ID: 1, Voter: true, Disk: disk}}}
}

// Encode is the record's value.
func (a Assignment) Encode() []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic("an Assignment always encodes: " + err.Error())
	}
	return b
}

// Decode reads a record under its key. Errors name the key.
func Decode(key string, value []byte) (Assignment, error) {
	shard, err := strconv.ParseUint(strings.TrimPrefix(key, Prefix), 10, 64)
	if err != nil || !strings.HasPrefix(key, Prefix) {
		return Assignment{}, fmt.Errorf("%q is no key of an assignment", key)
	}
	var a Assignment
	if err := json.Unmarshal(value, &a); err != nil {
		return Assignment{}, fmt.Errorf("assignment at %s: %w", key, err)
	}
	if a.Shard != shard {
		return Assignment{}, fmt.Errorf("assignment at %s says that it is of shard %d", key, a.Shard)
	}
	seen := map[uint64]bool{}
	for _, r := range a.Replicas {
		if r.Peer == "" || r.ID == 0 || r.ID >= a.Next || seen[r.ID] {
			return Assignment{}, fmt.Errorf("assignment at %s: bad replica %d of peer %q", key, r.ID, r.Peer)
		}
		seen[r.ID] = true
	}
	for _, r := range a.Former {
		if r.Peer == "" || r.ID == 0 || r.ID >= a.Next || seen[r.ID] {
			return Assignment{}, fmt.Errorf("assignment at %s: bad former replica %d of peer %q", key, r.ID, r.Peer)
		}
		seen[r.ID] = true
	}
	return a, nil
}

// Of returns the peer's replica.
func (a Assignment) Of(peer string) (Replica, bool) {
	for _, r := range a.Replicas {
		if r.Peer == peer {
			return r, true
		}
	}
	return Replica{}, false
}

// Want is one peer that is to hold a replica.
type Want struct {
	Peer  string
	Voter bool
}

// Place returns the assignment that has exactly the wanted peers, in their order.
// Replicas of peers that stay keep their IDs, as do former ones that the group still
// has; others get new ones. A voter that is to become non-voting is replaced, because
// raft cannot demote. A group of which nothing is known is the zero Members.
func (a Assignment) Place(want []Want, group Members) Assignment {
	next := Assignment{Shard: a.Shard, Next: max(a.Next, 1)}
	all := append(slices.Clone(a.Replicas), a.Former...)
	for _, w := range want {
		i := slices.IndexFunc(all, func(r Replica) bool { return r.Peer == w.Peer })
		if i >= 0 && (w.Voter || !all[i].Voter) && (i < len(a.Replicas) || group.has(all[i])) {
			r := all[i]
			r.Voter = w.Voter
			next.Replicas = append(next.Replicas, r)
			continue
		}
		next.Replicas = append(next.Replicas, Replica{Peer: w.Peer, ID: next.Next, Voter: w.Voter})
		next.Next++
	}
	for _, r := range all {
		if _, placed := next.Of(r.Peer); !placed && group.has(r) {
			next.Former = append(next.Former, r)
		}
	}
	return next
}

// Pending lists the peers whose assigned replicas are not in the group yet, or do
// not vote yet though they are to.
func (a Assignment) Pending(group Members) []string {
	var pending []string
	for _, r := range a.Replicas {
		if r.Voter && group.Voters[r.ID] != r.Peer || !r.Voter && group.NonVoters[r.ID] != r.Peer {
			pending = append(pending, r.Peer)
		}
	}
	return pending
}

// SettledIn tells whether the group has exactly the assigned replicas.
func (a Assignment) SettledIn(group Members) bool {
	return len(a.Replicas) == len(group.Voters)+len(group.NonVoters) && len(a.Pending(group)) == 0
}

// Claim binds the peer's replica to its data folder. A replica that is bound to
// another folder is given up for a new one, with a new ID. changed is false if the
// assignment already says so or has no replica of the peer.
func (a Assignment) Claim(peer, disk string) (next Assignment, changed bool) {
	next = Assignment{Shard: a.Shard, Next: a.Next, Former: a.Former}
	for _, r := range a.Replicas {
		if r.Peer == peer && r.Disk != disk {
			if r.Disk != "" {
				r.ID = next.Next
				next.Next++
			}
			r.Disk, changed = disk, true
		}
		next.Replicas = append(next.Replicas, r)
	}
	return next, changed
}

// Renew gives the replica a new ID, because its group has removed the old one and
// raft does not take that back.
func (a Assignment) Renew(id uint64) Assignment {
	next := Assignment{Shard: a.Shard, Next: a.Next, Former: a.Former}
	for _, r := range a.Replicas {
		if r.ID == id {
			r.ID, r.Disk = next.Next, ""
			next.Next++
		}
		next.Replicas = append(next.Replicas, r)
	}
	return next
}

// Recover is the assignment of a shard that lost its majority and goes on from the
// copy of one peer, which becomes its only voter under the given ID, one
// that no replica of the shard ever had.
func (a Assignment) Recover(peer, disk string, id uint64) Assignment {
	return Assignment{
		Shard: a.Shard, Next: max(a.Next, id+1), Replicas: []Replica{{Peer: peer, ID: id, Voter: true, Disk: disk}},
	}
}
