package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

// Errors of opening a store and of reading from it.
var (
	// ErrDamaged reports data on the disk that are not what was written there. Errors of this kind are a *DamageError where they concern
	// one replica alone.
	ErrDamaged = errors.New("log store is damaged")
	// ErrNewer reports a store that a newer version has written.
	ErrNewer = errors.New("log store is of a newer version")
)

var errClosed = errors.New("log store is closed")

// DamageError names the replica whose log is damaged.
type DamageError struct {
	Shard, Replica uint64
	Cause          error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("the log of replica %d of shard %d is damaged: %v", e.Replica, e.Shard, e.Cause)
}

// Unwrap gives ErrDamaged and the cause to errors.Is and errors.As.
func (e *DamageError) Unwrap() []error { return []error{ErrDamaged, e.Cause} }

func damaged(n node, format string, args ...any) error {
	return &DamageError{Shard: n.shard, Replica: n.replica, Cause: fmt.Errorf(format, args...)}
}

// Factory makes a Store for dragonboat: config.ExpertConfig.LogDBFactory.
type Factory struct {
	// Failed is told, at most a few times, that the disk failed or that damage was met while reading. The goroutine that met a failed
	// write never returns, since nobody may be told that what it wrote is durable; a *DamageError is returned to dragonboat as well. It
	// must not block.
	Failed func(error)
	Logger *slog.Logger
	// SegmentBytes is the size of a segment file. Default 16 MiB.
	SegmentBytes int64

	mu    sync.Mutex
	store *Store
}

// storeFolder lies in dragonboat's folder of the host.
const storeFolder = "logstore"

// Name is that of dragonboat's own store, whose folders are taken over.
func (f *Factory) Name() string { return "sharded-pebble" }

// Create opens or makes the store. A folder of dragonboat's own store is converted. Errors: ErrDamaged where the store as a whole cannot
// be read, ErrNewer.
func (f *Factory) Create(cfg config.NodeHostConfig, _ config.LogDBCallback, dirs, walDirs []string) (raftio.ILogDB, error) {
	fs := cfg.Expert.FS
	if fs == nil {
		fs = vfs.Default
	}
	dir := fs.PathJoin(dirs[0], storeFolder)
	if err := f.convert(cfg, fs, dir, dirs[0], walDirs[0]); err != nil {
		return nil, err
	}
	s, err := f.open(fs, dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.store = s
	f.mu.Unlock()
	return s, nil
}

func (f *Factory) open(fs config.IFS, dir string) (*Store, error) {
	return open(fs, dir, options{segmentBytes: f.SegmentBytes, failed: f.Failed, log: f.Logger})
}

func (f *Factory) opened() *Store {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.store
}

// Check says whether the replica's log holds all that the replica has ever promised. Error: a *DamageError. A replica without a log is
// fine if it never had one.
func (f *Factory) Check(shard, replica uint64) error { return f.opened().check(node{shard, replica}) }

// Snapshot is the record of a replica's newest snapshot, the empty one if it has none.
func (f *Factory) Snapshot(shard, replica uint64) (raftpb.Snapshot, error) {
	return f.opened().GetSnapshot(shard, replica)
}
