// Package admin is the peer's local administration: HTTP over the Unix socket
// peer.sock in the data folder, which only root can open. It serves what
// `peer status`, `leave`, `image`, `set`, `recover` and `backup` need from the very process on
// this host, without a kubeconfig and without a quorum.
package admin

import (
	"context"
	"io"
	"time"
)

// Status is what one peer knows about itself and its cluster.
type Status struct {
	ClusterID string        `json:"clusterID"`
	PeerID    string        `json:"peerID"`
	Name      string        `json:"name"`
	Version   string        `json:"version"`
	Address   string        `json:"address"` // host:port of the one port
	Started   time.Time     `json:"started"`
	Ready     bool          `json:"ready"`
	Problems  []string      `json:"problems,omitempty"` // one sentence each; empty when all is well
	Peers     []PeerStatus  `json:"peers"`
	Shards    []ShardStatus `json:"shards"`
	// Settings are the cluster's, by name; empty while the meta shard cannot be read.
	Settings map[string]string `json:"settings,omitempty"`
}

// PeerStatus is one peer as this one sees it.
type PeerStatus struct {
	PeerID  string `json:"peerID"`
	Name    string `json:"name"`
	Address string `json:"address"` // host:port
	Zone    string `json:"zone,omitempty"`
	Version string `json:"version"`
	// State is the gossip state: alive, suspect, dead or left.
	State string `json:"state"`
	// Leaving says that it is giving up what it holds.
	Leaving bool `json:"leaving,omitempty"`
}

// ShardStatus is one shard as this peer sees it. Peers are named by peer ID.
type ShardStatus struct {
	Shard      uint64   `json:"shard"`
	Leader     string   `json:"leader,omitempty"` // empty: none known
	Voters     []string `json:"voters"`
	NonVoters  []string `json:"nonVoters,omitempty"`
	Local      bool     `json:"local"`             // this peer holds a replica
	Applied    uint64   `json:"applied,omitempty"` // raft index, of the local replica
	Namespaces int      `json:"namespaces,omitempty"`
	// Missing are voters whose peers are not alive.
	Missing []string `json:"missing,omitempty"`
	// Lost says that so many are missing that the shard has no quorum.
	Lost bool `json:"lost,omitempty"`
	// Moves are the changes of membership that are still to be made, one sentence each.
	Moves []string `json:"moves,omitempty"`
	// Quarantine says why the local replica is left stopped. It is replaced by itself once the shard has a majority without it.
	Quarantine string `json:"quarantine,omitempty"`
	// Quarantined says the same of the replicas on other peers, as those that answered in time have it, by peer ID.
	Quarantined map[string]string `json:"quarantined,omitempty"`
	// Trouble says why the local replica does not work.
	Trouble string `json:"trouble,omitempty"`
}

// Setting is one cluster-wide setting.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Help  string `json:"help"` // one sentence
}

// Loss is a shard without quorum and what is left of it. Peers are named by name.
type Loss struct {
	Shard      uint64   `json:"shard"`
	Voters     []string `json:"voters"`
	Missing    []string `json:"missing"`
	Namespaces []string `json:"namespaces,omitempty"`
	// Final says that the voters within reach are no majority: waiting for an election is of no use.
	Final  bool         `json:"final"`
	Copies []CopyStatus `json:"copies"` // within reach, the best first
}

// CopyStatus is one copy of a shard without quorum.
type CopyStatus struct {
	Peer string `json:"peer"`
	Here bool   `json:"here"` // on the answering peer
	// LastChange is the moment of the newest change that it shows, Revision that change's revision.
	LastChange time.Time `json:"lastChange"`
	Revision   uint64    `json:"revision"`
	// Term and Index are the end of its raft log.
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	// LeaderSeen is when it last had a leader; zero: not since its peer started.
	LeaderSeen time.Time `json:"leaderSeen,omitzero"`
}

// Image is one image in the peer's containerd.
type Image struct {
	Name   string    `json:"name"`
	Digest string    `json:"digest"`
	Size   int64     `json:"size"` // bytes, compressed
	Made   time.Time `json:"made"`
}

// Placement says where a pod would go and why, and why not elsewhere.
type Placement struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Shard     uint64 `json:"shard"`
	Leader    string `json:"leader"`       // the peer that decides
	On        string `json:"on,omitempty"` // the node that the pod is on
	// Waits says why nobody decides about the pod now; the rest answers all the same.
	Waits    string          `json:"waits,omitempty"`
	Node     string          `json:"node,omitempty"`    // where it would go
	Message  string          `json:"message,omitempty"` // if nowhere: why
	Preempts *Preemption     `json:"preempts,omitempty"`
	Nodes    []NodePlacement `json:"nodes"` // best first, those that do not suit last
}

// Preemption names the pods that have to leave a node for another pod.
type Preemption struct {
	Node       string   `json:"node"`
	Victims    []string `json:"victims"`    // namespace/name
	Violations int      `json:"violations"` // victims whose disruption budgets do not allow it
}

// NodePlacement is one node's answer to a pod.
type NodePlacement struct {
	Node    string           `json:"node"`
	Reasons []string         `json:"reasons,omitempty"` // why not; empty if it suits
	Scores  map[string]int64 `json:"scores,omitempty"`  // by the scheduler's plugin
	Total   int64            `json:"total"`
}

// Calls are what the socket offers. A nil one answers "not available".
type Calls struct {
	Status func(ctx context.Context) (*Status, error)
	// Leave takes the peer out of the cluster and reports every step.
	Leave func(ctx context.Context, progress func(string)) error
	// ImportImage reads a tarball (docker-archive or OCI layout), reports
	// progress, and returns what it imported.
	ImportImage func(ctx context.Context, tarball io.Reader, progress func(string)) ([]Image, error)
	ListImages  func(ctx context.Context) ([]Image, error)
	// Settings lists the cluster's settings, Set changes one and reports every step.
	Settings func(ctx context.Context) ([]Setting, error)
	Set      func(ctx context.Context, name, value string, progress func(string)) error
	// Losses finds the shards without quorum. Recover makes shards go on from the copies here, which restarts the peer.
	Losses  func(ctx context.Context) ([]Loss, error)
	Recover func(ctx context.Context, shards []uint64, progress func(string)) error
	// Backup writes the whole cluster, encrypted if there is a passphrase.
	Backup func(ctx context.Context, passphrase string, to io.Writer) error
	// Hint tells of addresses at which peers of the cluster may be, after all have changed theirs.
	Hint func(ctx context.Context, addresses []string) error
	// ExplainPlacement asks whoever decides about a pod.
	ExplainPlacement func(ctx context.Context, namespace, pod string) (*Placement, error)
}

// change is what Set, Recover, Backup and Hint are asked for.
type change struct {
	Name       string   `json:"name,omitempty"`
	Value      string   `json:"value,omitempty"`
	Shards     []uint64 `json:"shards,omitempty"`
	Passphrase string   `json:"passphrase,omitempty"`
	Addresses  []string `json:"addresses,omitempty"`
}

// event is one line of a streamed answer: progress lines, then one of the others.
type event struct {
	Progress string  `json:"progress,omitempty"`
	Images   []Image `json:"images,omitempty"`
	Error    string  `json:"error,omitempty"`
	Done     bool    `json:"done,omitempty"`
}

const (
	statusPath = "/v1/status"
	leavePath  = "/v1/leave"
	imagesPath = "/v1/images"

	settingsPath = "/v1/settings"
	lossesPath   = "/v1/losses"
	recoverPath  = "/v1/recover"
	backupPath   = "/v1/backup"
	hintPath     = "/v1/hint"

	placementPath = "/v1/placement" // ?namespace=…&pod=…
)
