// Package admin is the peer's local administration: HTTP over the Unix socket
// peer.sock in the data folder, which only root can open. It serves what
// `peer status`, `peer leave` and `peer image` need from the very process on
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
}

// Image is one image in the peer's containerd.
type Image struct {
	Name   string    `json:"name"`
	Digest string    `json:"digest"`
	Size   int64     `json:"size"` // bytes, compressed
	Made   time.Time `json:"made"`
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
)
