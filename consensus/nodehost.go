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

// nodeHostConfig is dragonboat's configuration, with one log for many small raft groups, and one worker that steps them: it takes all
// groups that have something to do at a time, so what they store shares one sync and what they say to a peer one message. Several
// workers would each wait for the same disk in turn.
func nodeHostConfig(cfg Config, logs *logstore.Factory, t *transportFactory, l raftio.IRaftEventListener, e raftio.ISystemEventListener) config.NodeHostConfig {
	cluster := fnv.New64a()
	cluster.Write([]byte(cfg.ClusterID)) //nolint:errcheck // a hash never fails
	engine := config.EngineConfig{ExecShards: 1, CommitShards: 1, ApplyShards: 2, SnapshotShards: 2, CloseShards: 2}
	if cfg.Frugal {
		logs.SegmentBytes = 1 << 20
		engine.ApplyShards, engine.SnapshotShards, engine.CloseShards = 1, 1, 1
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
		if err := errors.Join(os.MkdirAll(dir, 0o700), forgetStatus(dir), followHostname(dir)); err != nil {
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

// heartbeatTicks is how often a leader speaks, in ticks. Three times within the shortest election timeout is enough, since what is lost comes
// again after 0.2 s, and the ticks and heartbeats of idle shards are most of what an idle peer does.
const heartbeatTicks = 3

// replicaConfig is raft's configuration of one replica. Quiesce stays off: a leader
// that dies while its group sleeps is never replaced.
func (h *Host) replicaConfig(r diskReplica) config.Config {
	return config.Config{
		ShardID:             r.Shard,
		ReplicaID:           r.Replica,
		IsNonVoting:         r.NonVoting,
		CheckQuorum:         true,
		PreVote:             true,
		ElectionRTT:         electionTicks,
		HeartbeatRTT:        heartbeatTicks,
		SnapshotEntries:     h.cfg.SnapshotEntries, // 0: see makeSnapshots
		CompactionOverhead:  compactionOverhead(h.cfg.SnapshotEntries),
		MaxInMemLogSize:     64 << 20,
		OrderedConfigChange: true,
	}
}

// raftStatus is dragonboat's file that says what host a folder is of and how many workers step its groups, and refuses all others.
const raftStatus = "dragonboat.ds"

// forgetStatus has dragonboat write that file anew. What matters of it, the peer, the cluster and the log's format, consensus.json has
// compared already, and our log does not depend on the number of workers.
func forgetStatus(dir string) error {
	if err := os.Remove(filepath.Join(dir, raftStatus)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// followHostname lets a folder open after its host was renamed: dragonboat keeps everything below a folder with the host's name.
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
	return os.Rename(filepath.Join(dir, folders[0]), filepath.Join(dir, host))
}

// inRaft makes a call of dragonboat's that must not meet its end: NodeHost.Close takes away what reads and proposals use after they have
// found it open. A call that waits has to end with the host's ctx. Error: ErrClosed, or the call's.
func inRaft[T any](h *Host, call func() (T, error)) (T, error) {
	if !h.calling.TryRLock() {
		var none T
		return none, ErrClosed
	}
	defer h.calling.RUnlock()
	return call()
}
