package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/lni/dragonboat/v4/config"

	"shoal/consensus/store"
	"shoal/internal/boottime"
)

// The peer services that a Host listens on and dials.
const (
	// ServiceRaft carries raft messages and snapshots between replicas.
	ServiceRaft = "shoal/raft"
	// ServiceStore carries reads, proposals and watches from peers that hold no
	// replica of a shard.
	ServiceStore = "shoal/store"
)

// MetaShard is the number of the meta shard. Data shards count from 1.
const MetaShard uint64 = 0

// FS is a file system that dragonboat can keep a store on: *vfs.MemFS or
// *vfs.ErrorFS of lni/vfs.
type FS = config.IFS

// Config is what a Host needs from its peer.
type Config struct {
	// PeerID is this peer's identity: the raft address, resolved by Dial.
	PeerID string
	// ClusterID names the cluster. A folder of another cluster is refused.
	ClusterID string
	// Dir is the data folder, created 0700.
	Dir string
	// Listen opens this peer's end of a service. Accepted connections should have
	// a method PeerID() string with the caller's proven identity; where they have,
	// raft messages in another peer's name are dropped.
	Listen func(service string) (net.Listener, error)
	// Dial reaches a peer by its ID, wherever its address is now.
	Dial func(ctx context.Context, peerID, service string) (net.Conn, error)
	// Peers lists the peers believed alive, this one included or not. It is asked
	// when a shard has to be found before its assignment is known. Nil is none.
	Peers func() []string
	// PeerName is what errors call a peer. Nil, and an unknown ID, are the ID itself.
	PeerName func(peerID string) string
	// Offset is how far this peer's clock is ahead of its peers' median; ok is
	// false as long as that is not known: then the other peers are asked before the
	// first stamp. Nil is never known, and nobody is asked.
	Offset func() (ahead time.Duration, ok bool)
	// Now is the wall clock. Nil is the host's.
	Now func() time.Time
	// DataShards is the number of data shards that Found makes. Default 8.
	DataShards int
	// History bounds each shard's record of past changes. Its Requests must be the
	// same on every peer of a cluster. Zero fields have defaults (32 MiB, 10 minutes).
	History store.Limits
	// MaxTransaction is the largest encoded transaction, in bytes. Default 8 MiB,
	// at most 32 MiB.
	MaxTransaction int
	// SnapshotEntries is how many log entries lie between two snapshots of a shard,
	// however large. By default a shard makes one when its log since the last has
	// become as large as its state, so that a start reads at most twice what it keeps.
	SnapshotEntries uint64
	// NoReadLeases makes this host ask a majority for every linearizable read, also where it leads and was confirmed just before.
	NoReadLeases bool
	// Elapsed measures durations for read leases, from any moment on. It must not run slower or faster than other hosts' by a tenth, and
	// should count the time for which the machine sleeps. Nil is CLOCK_BOOTTIME.
	Elapsed func() time.Duration
	// RTT is raft's tick: ten of them are an election timeout. Default 50 ms.
	RTT time.Duration
	// FS replaces the disk in simulations. Nil is the host's disk.
	FS FS
	// Frugal keeps dragonboat to one worker per kind and the smallest buffers, for
	// tests and simulations with many hosts in one process. Like the rest of the
	// engine's layout it is frozen at the folder's first start.
	Frugal bool
	// Logger is where the host reports. Default slog.Default().
	Logger *slog.Logger

	// asksClocks says that there is an Offset to wait for.
	asksClocks bool
}

func (c Config) withDefaults() (Config, error) {
	if c.PeerID == "" || c.ClusterID == "" || c.Dir == "" {
		return c, errors.New("consensus: PeerID, ClusterID and Dir are mandatory")
	}
	if c.Listen == nil || c.Dial == nil {
		return c, errors.New("consensus: Listen and Dial are mandatory")
	}
	if c.Peers == nil {
		c.Peers = func() []string { return nil }
	}
	name := c.PeerName
	c.PeerName = func(id string) string {
		if name != nil {
			if known := name(id); known != "" {
				return known
			}
		}
		return id
	}
	c.asksClocks = c.Offset != nil
	if c.Offset == nil {
		c.Offset = func() (time.Duration, bool) { return 0, false }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Elapsed == nil {
		if _, err := boottime.Now(); err != nil {
			return c, fmt.Errorf("consensus: %w", err)
		}
		c.Elapsed = func() time.Duration {
			now, _ := boottime.Now() //nolint:errcheck // it can be read, as was just seen
			return now
		}
	}
	if c.DataShards == 0 {
		c.DataShards = 8
	}
	if c.DataShards < 1 || c.DataShards > store.MaxShard {
		return c, fmt.Errorf("consensus: %d data shards: must be 1 to %d", c.DataShards, store.MaxShard)
	}
	if c.MaxTransaction == 0 {
		c.MaxTransaction = 8 << 20
	}
	if c.MaxTransaction < 0 || c.MaxTransaction > 32<<20 {
		return c, fmt.Errorf("consensus: MaxTransaction %d: must be at most 32 MiB", c.MaxTransaction)
	}
	if c.RTT == 0 {
		c.RTT = 50 * time.Millisecond
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.History = c.History.WithDefaults()
	return c, nil
}
