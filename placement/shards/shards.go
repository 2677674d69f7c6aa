// Package shards decides which peer holds which replica of which shard, and who leads.
package shards

import "time"

// Peer is a machine that can hold replicas.
type Peer struct {
	ID     string
	Zone   string
	Weight float64   // share of replicas it should get, 1 for an ordinary peer, 0 for none
	Down   time.Time // since when it is dead; zero if it is alive
	Leaves bool      // it is leaving and should give up its replicas
}

// Replica is one shard's copy on one peer.
type Replica struct {
	Peer  string
	Voter bool
}

// Assignment is who holds one shard.
type Assignment struct {
	Shard    uint64
	Replicas []Replica
	Leader   string // where known
	Busy     bool   // a change is under way
}

// Options are the numbers of Plan.
type Options struct {
	Voters     int           // with at least that many peers: 3, or 5
	Hysteresis time.Duration // how long a peer must be dead before it is replaced
}

// Step is one wanted membership change of one shard.
type Step struct {
	Shard  uint64
	Want   []Replica // the whole membership after the step
	Reason string
}

// Plan returns at most one step per shard.
func Plan(peers []Peer, current []Assignment, o Options, now time.Time) []Step { return nil }

// Transfer asks a shard's leader to hand over.
type Transfer struct {
	Shard    uint64
	From, To string
}

// PlanLeaders spreads leaders evenly over the peers that hold voters.
func PlanLeaders(peers []Peer, current []Assignment) []Transfer { return nil }
