package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

// ErrDamaged reports data on the disk that are not what was written there. Errors of this kind are a *DamageError where they concern
// one replica alone.
var ErrDamaged = errors.New("log store is damaged")

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
	// write never returns; a *DamageError is returned to dragonboat as well. It must not block.
	Failed func(error)
	Logger *slog.Logger

	mu    sync.Mutex
	store *Store
}

// Name is that of dragonboat's own store, whose folders this one opens.
func (f *Factory) Name() string { return "sharded-pebble" }

// Create opens or makes the store. Error: ErrDamaged where the store as a whole cannot be read.
func (f *Factory) Create(cfg config.NodeHostConfig, busy config.LogDBCallback, dirs, walDirs []string) (raftio.ILogDB, error) {
	s, err := open(f, cfg, busy, dirs, walDirs)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.store = s
	f.mu.Unlock()
	return s, nil
}

// Check says whether the replica's log holds all that the replica has ever promised. Errors: a *DamageError, or what reading gave. A
// replica without a log is fine if it never had one.
func (f *Factory) Check(shard, replica uint64) error {
	f.mu.Lock()
	s := f.store
	f.mu.Unlock()
	n := node{shard, replica}
	if _, err := s.GetBootstrapInfo(shard, replica); errors.Is(err, raftio.ErrNoBootstrapInfo) {
		return nil
	} else if err != nil {
		return err
	}
	snapshot, err := s.GetSnapshot(shard, replica)
	if err != nil {
		return err
	}
	_, err = s.ReadRaftState(shard, replica, snapshot.Index)
	if errors.Is(err, raftio.ErrNoSavedLog) {
		if m := s.marks.get(n); m.term != 0 || m.last != 0 {
			return damaged(n, "nothing of it is left; it had acknowledged entries up to %d in term %d", m.last, m.term)
		}
		return nil
	}
	return err
}

// Snapshot is the record of a replica's newest snapshot, the empty one if it has none. Error: a *DamageError.
func (f *Factory) Snapshot(shard, replica uint64) (raftpb.Snapshot, error) {
	f.mu.Lock()
	s := f.store
	f.mu.Unlock()
	return s.GetSnapshot(shard, replica)
}

// Store keeps the logs. It is used by dragonboat, see raftio.ILogDB.
type Store struct {
	db    *pebble.DB
	dir   string
	fail  func(error)
	log   *slog.Logger
	marks *marks

	mu    sync.Mutex
	nodes map[node]*nodeState
	// batches are reused by dragonboat's workers, one each.
	batches []*scratch

	compactions chan compaction
	pressure    chan struct{}
	stop        chan struct{}
	loops       sync.WaitGroup
}

type scratch struct {
	batch    *pebble.Batch
	key, buf []byte
}

type compaction struct {
	node
	index uint64
	done  chan struct{}
}

const maxManifest = 128 << 20

func open(f *Factory, cfg config.NodeHostConfig, busy config.LogDBCallback, dirs, walDirs []string) (*Store, error) {
	fs := cfg.Expert.FS
	if fs == nil {
		fs = vfs.Default
	}
	dir, wal := fs.PathJoin(dirs[0], "logdb-0"), fs.PathJoin(walDirs[0], "logdb-0")
	for _, d := range []string{dir, wal} {
		if err := fs.MkdirAll(d, 0o750); err != nil {
			return nil, fmt.Errorf("log store: %w", err)
		}
	}
	s := &Store{
		dir: dir, fail: f.Failed, log: f.Logger, nodes: map[node]*nodeState{},
		compactions: make(chan compaction, 1024), pressure: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if err := checkFiles(fs, dir, wal); err != nil {
		return nil, err
	}
	var err error
	if s.marks, err = openMarks(fs, dir, f.Logger); err != nil {
		return nil, err
	}
	opts := s.options(cfg.Expert.LogDB, fs, wal)
	if s.db, err = openPebble(dir, opts); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, dir, err)
	}
	for range cfg.Expert.Engine.ExecShards {
		s.batches = append(s.batches, &scratch{batch: s.db.NewBatch()})
	}
	if busy != nil {
		s.loops.Go(func() { s.watchPressure(cfg.Expert.LogDB, busy) })
	}
	s.loops.Go(s.compact)
	if found, err := s.holdsBatches(); err != nil || found {
		return nil, errors.Join(err, errors.New("the log store has dragonboat's batched layout, which this version does not read"), s.Close())
	}
	return s, nil
}

// openPebble opens pebble, which panics on some kinds of damage.
func openPebble(dir string, opts *pebble.Options) (db *pebble.DB, err error) {
	defer opts.Cache.Unref()
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("%v", r)
		}
	}()
	return pebble.Open(dir, opts)
}

// options are dragonboat's, whose folders have to open, but for logger and listeners.
func (s *Store) options(c config.LogDBConfig, fs config.IFS, wal string) *pebble.Options {
	opts := &pebble.Options{
		MaxManifestFileSize:         maxManifest,
		MemTableSize:                int(c.KVWriteBufferSize),
		MemTableStopWritesThreshold: int(c.KVMaxWriteBufferNumber),
		LBaseMaxBytes:               int64(c.KVMaxBytesForLevelBase),
		L0CompactionFileThreshold:   int(c.KVLevel0FileNumCompactionTrigger),
		L0StopWritesThreshold:       int(c.KVLevel0StopWritesTrigger),
		Cache:                       pebble.NewCache(int64(c.KVLRUCacheSize)),
		Logger:                      standStill{s},
		WALDir:                      wal,
	}
	size := int64(c.KVTargetFileSizeBase)
	for range c.KVNumOfLevels {
		opts.Levels = append(opts.Levels, pebble.LevelOptions{
			Compression: pebble.NoCompression, BlockSize: int(c.KVBlockSize), TargetFileSize: size,
		})
		size *= int64(c.KVTargetFileSizeMultiplier)
	}
	if fs != vfs.Default {
		opts.FS = pebbleFS{fs}
	}
	kick := func() {
		select {
		case s.pressure <- struct{}{}:
		default:
		}
	}
	opts.EventListener = pebble.EventListener{
		BackgroundError: func(err error) { s.fail(fmt.Errorf("log store %s: %w", s.dir, err)) },
		WALCreated:      func(pebble.WALCreateInfo) { kick() },
		FlushEnd:        func(pebble.FlushInfo) { kick() },
		CompactionEnd:   func(pebble.CompactionInfo) { kick() },
	}
	return opts
}

// standStill is pebble's logger. After a fatal report pebble must not go on, and the process is to end in order: the goroutine stops
// here for good.
type standStill struct{ s *Store }

func (standStill) Infof(string, ...any) {}

func (l standStill) Fatalf(format string, args ...any) {
	l.s.failForGood(fmt.Errorf("log store %s: %s", l.s.dir, fmt.Sprintf(format, args...)))
}

// failForGood reports a failed write and does not return: what was to be durable may not be, so nobody may be told that it is.
func (s *Store) failForGood(err error) {
	s.fail(err)
	select {}
}

// watchPressure tells dragonboat when writes come faster than they can be flushed; it then refuses proposals.
func (s *Store) watchPressure(c config.LogDBConfig, busy config.LogDBCallback) {
	for {
		select {
		case <-s.stop:
			return
		case <-s.pressure:
		}
		m := s.db.Metrics()
		full := m.MemTable.Size >= c.KVWriteBufferSize*c.KVMaxWriteBufferNumber*19/20 ||
			uint64(m.Levels[0].Sublevels) >= c.KVLevel0StopWritesTrigger-1
		busy(config.LogDBInfo{Busy: full})
	}
}

// compact gives back the room of removed entries.
func (s *Store) compact() {
	for {
		select {
		case <-s.stop:
			return
		case c := <-s.compactions:
			if err := s.db.Compact(c.indexed(kindEntry, 0), c.indexed(kindEntry, c.index), false); err != nil {
				s.log.Warn("room of removed log entries is not given back yet", "shard", c.shard, "err", err)
			}
			close(c.done)
		}
	}
}

// Name is that of dragonboat's own store.
func (s *Store) Name() string { return "sharded-pebble" }

// BinaryFormat is that of dragonboat's plain layout.
func (s *Store) BinaryFormat() uint32 { return raftio.PlainLogDBBinVersion }

// closeTimeout bounds how long Close waits for pebble, which may stand still on a failed disk.
const closeTimeout = 10 * time.Second

// Close ends the store. It waits for compactions under way.
func (s *Store) Close() error {
	close(s.stop)
	s.loops.Wait()
	done := make(chan error, 1)
	go func() {
		failed := make([]error, 0, len(s.batches)+2)
		for _, b := range s.batches {
			failed = append(failed, b.batch.Close())
		}
		done <- errors.Join(append(failed, s.db.Close(), s.marks.close())...)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(closeTimeout):
		return fmt.Errorf("log store %s does not close", s.dir)
	}
}
