package consensus

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"

	"shoal/consensus/logstore"
)

// nodeHostConfig is dragonboat's configuration, with few workers for many small
// raft groups and one log for all of them.
func nodeHostConfig(cfg Config, logs *logstore.Factory, t *transportFactory, l raftio.IRaftEventListener, e raftio.ISystemEventListener) config.NodeHostConfig {
	cluster := fnv.New64a()
	cluster.Write([]byte(cfg.ClusterID)) //nolint:errcheck // a hash never fails
	engine := config.EngineConfig{ExecShards: 4, CommitShards: 2, ApplyShards: 4, SnapshotShards: 2, CloseShards: 2}
	if cfg.Frugal {
		logs.SegmentBytes = 1 << 20
		engine = config.EngineConfig{ExecShards: 1, CommitShards: 1, ApplyShards: 1, SnapshotShards: 1, CloseShards: 1}
	}
	return config.NodeHostConfig{
		DeploymentID:        cluster.Sum64() | 1,
		NodeHostDir:         filepath.Join(cfg.Dir, "raft"),
		RTTMillisecond:      uint64(cfg.RTT / time.Millisecond),
		RaftAddress:         cfg.PeerID,
		RaftEventListener:   l,
		SystemEventListener: e,
		Expert: config.ExpertConfig{
			TransportFactory: t,
			Engine:           engine,
			LogDB:            config.LogDBConfig{Shards: 1}, // of dragonboat's own store
			LogDBFactory:     logs,
			FS:               cfg.FS,
		},
	}
}

// openNodeHost starts dragonboat, after recoveries that were prepared.
func openNodeHost(cfg Config, d *disk, logs *logstore.Factory, t *transportFactory, l raftio.IRaftEventListener, e raftio.ISystemEventListener) (nh *dragonboat.NodeHost, err error) {
	// dragonboat turns some failures of its start into panics.
	defer func() {
		if r := recover(); r != nil {
			nh, err = nil, fmt.Errorf("start raft in %s: %v", cfg.Dir, r)
		}
	}()
	dir := filepath.Join(cfg.Dir, "raft")
	if cfg.FS == nil {
		if err := errors.Join(os.MkdirAll(dir, 0o700), followHostname(dir)); err != nil {
			return nil, fmt.Errorf("start raft: %w", err)
		}
	}
	if err := importRecoveries(cfg, d, logs); err != nil {
		return nil, err
	}
	nh, err = dragonboat.NewNodeHost(nodeHostConfig(cfg, logs, t, l, e))
	if err != nil {
		return nil, fmt.Errorf("start raft in %s: %w", dir, err)
	}
	if nh == nil {
		// NewNodeHost recovers from panics that are no errors and then returns
		// neither a host nor an error.
		return nil, fmt.Errorf("start raft in %s: it failed without a reason", dir)
	}
	return nh, nil
}

// replicaConfig is raft's configuration of one replica. Quiesce stays off: a leader
// that dies while its group sleeps is never replaced.
func (h *Host) replicaConfig(r diskReplica) config.Config {
	return config.Config{
		ShardID:             r.Shard,
		ReplicaID:           r.Replica,
		IsNonVoting:         r.NonVoting,
		CheckQuorum:         true,
		PreVote:             true,
		ElectionRTT:         10,
		HeartbeatRTT:        2,
		SnapshotEntries:     h.cfg.SnapshotEntries, // 0: see makeSnapshots
		CompactionOverhead:  compactionOverhead(h.cfg.SnapshotEntries),
		MaxInMemLogSize:     64 << 20,
		OrderedConfigChange: true,
	}
}

// raftStatus is dragonboat's file that says, among other things, which host a folder is of.
const raftStatus = "dragonboat.ds"

// followHostname lets a folder open after its host was renamed. dragonboat keeps everything below a folder with the host's name and
// refuses another; here a peer is its key, which consensus.json has compared already, and not its host.
func followHostname(dir string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var folders []string
	for _, e := range entries {
		if e.IsDir() {
			folders = append(folders, e.Name())
		}
	}
	if len(folders) != 1 || folders[0] == host {
		return nil
	}
	// The status goes first: without it, and with the folder still under its old name, this is simply tried again.
	if err := os.Remove(filepath.Join(dir, raftStatus)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(filepath.Join(dir, folders[0]), filepath.Join(dir, host))
}
