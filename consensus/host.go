package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"golang.org/x/sync/semaphore"

	"shoal/consensus/logstore"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// Host is one peer's part in the store.
type Host struct {
	cfg    Config
	disk   *disk
	nh     *dragonboat.NodeHost
	logs   *logstore.Factory
	leases *readLeases
	clock  clock
	asked  askedClock

	leaders    leaders
	leadership mailbox
	leaderC    chan Leadership
	changed    signal
	routes     *routes
	closers    closers

	// ctx ends the host's loops, which stop counts.
	ctx    context.Context
	cancel context.CancelFunc
	loops  sync.WaitGroup

	// starting keeps starts of replicas apart; mu is never held while raft works,
	// because raft's reports take it.
	starting sync.Mutex
	// calling is held, shared, during calls of dragonboat that it does not keep apart from its own end, and for good by that.
	calling  sync.RWMutex
	mu       sync.Mutex
	closed   bool
	replicas map[uint64]*replica
	trouble  map[uint64]string
	// hearings belongs to the reconfigure loop alone.
	hearings map[uint64]hearing
	server   *storeServer
	// failed is what the host cannot go on after; contained are replicas that are
	// being stopped for a fault of their own.
	failed    *ending
	crashes   *crashLog
	contained map[replicaKey]bool
}

// Open starts the host over its data folder: replicas that the folder holds come
// back to life, nothing else happens until Found is called or an assignment names
// this peer.
//
// Errors: ErrForeignData, ErrNewerFormat, and what the disk says.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := refuseForeignSettings(); err != nil {
		return nil, err
	}
	disk, err := openDisk(cfg.FS, cfg.Dir, cfg.ClusterID, cfg.PeerID)
	if err != nil {
		return nil, err
	}
	setRaftLogger(cfg.Logger)
	crashes, err := takeCrash(cfg, disk)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, disk: disk,
		leaders:    leaders{shards: map[uint64]*leaderState{}},
		leadership: mailbox{pending: map[uint64]Leadership{}, wake: make(chan struct{}, 1)},
		leaderC:    make(chan Leadership),
		replicas:   map[uint64]*replica{},
		trouble:    map[uint64]string{},
		hearings:   map[uint64]hearing{},
		failed:     newEnding(),
		crashes:    crashes,
		contained:  map[replicaKey]bool{},
		asked:      askedClock{asking: semaphore.NewWeighted(1)},
	}
	h.clock.wall, h.clock.offset = cfg.Now, h.ClockAhead
	h.closers.spawn = h.spawn
	h.leaders.changed = &h.changed
	h.ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	h.routes = newRoutes(cfg)
	h.leases = newReadLeases(cfg)
	h.logs = &logstore.Factory{Failed: h.logFailed, Logger: cfg.Logger}
	if h.nh, err = openNodeHost(cfg, disk, h.logs, &transportFactory{cfg, h.ownerOf, h.leases}, &h.leaders, raftEvents{h}); err != nil {
		h.cancel()
		return nil, err
	}
	faulty.open(h)
	if err := h.start(); err != nil {
		return nil, errors.Join(err, h.Shutdown(ctx))
	}
	return h, nil
}

func (h *Host) start() error {
	server, err := newStoreServer(h)
	if err != nil {
		return err
	}
	h.server = server
	h.loops.Go(server.serve)
	h.loops.Go(func() { server.beats.run(h.ctx) })
	h.loops.Go(func() { h.leadership.run(h.ctx, h.leaderC) })
	h.removeLeftovers()
	for _, r := range h.disk.replicas() {
		if r.Removing {
			continue // the reconciler finishes it
		}
		if err := h.startReplica(r); err != nil && !errors.Is(err, errQuarantined) {
			return err
		}
	}
	h.loops.Go(func() { h.followAssignments(h.ctx) })
	h.loops.Go(func() { h.reconcile(h.ctx) })
	h.loops.Go(func() { h.reconfigure(h.ctx) })
	h.loops.Go(func() { h.finishRecoveries(h.ctx) })
	h.loops.Go(func() { h.lookForRemovals(h.ctx) })
	return nil
}

// Found founds a cluster: the meta shard and the data shards, with this peer as
// their only voter. It returns once all of them take writes. A founding that was
// interrupted is finished by calling it again. Error: ErrAlreadyFounded.
func (h *Host) Found(ctx context.Context) error {
	if h.Founded() {
		return fmt.Errorf("%w: %s", ErrAlreadyFounded, h.cfg.Dir)
	}
	if err := h.disk.setFounding(true); err != nil {
		return err
	}
	tx := store.Transaction{}
	for shard := uint64(0); shard <= uint64(h.cfg.DataShards); shard++ {
		r := diskReplica{Shard: shard, Replica: 1}
		if err := h.disk.put(r); err != nil {
			return err
		}
		if err := h.startReplica(r); err != nil {
			return err
		}
		key := shardmap.Key(shard)
		a := shardmap.Found(shard, h.cfg.PeerID, h.disk.identity())
		h.routes.assign(a)
		tx.Conditions = append(tx.Conditions, store.Condition{Key: key})
		tx.Ops = append(tx.Ops, store.Op{Key: key, Value: a.Encode()})
	}
	// The first entry of every shard: a replica that has caught up is then told
	// from one that holds nothing.
	for shard := uint64(1); shard <= uint64(h.cfg.DataShards); shard++ {
		if _, err := h.Propose(ctx, shard, store.Transaction{}); err != nil {
			return fmt.Errorf("found: %w", err)
		}
	}
	// Failed conditions mean that an interrupted founding came this far.
	if _, err := h.Propose(ctx, MetaShard, tx); err != nil {
		return fmt.Errorf("found: %w", err)
	}
	return h.disk.setFounding(false)
}

// Founded says that the folder is part of a cluster: Found is not to be called.
func (h *Host) Founded() bool { return h.disk.founded() }

// DiskID is drawn when the data folder is made and goes with it.
func (h *Host) DiskID() string { return h.disk.identity() }

// Now is the hybrid logical clock: at or above every revision this host has seen,
// and the wall clock; its shard bits are zero.
func (h *Host) Now() store.Revision { return h.clock.now() }

// Leadership reports leaderships of local replicas as they are gained and lost. A
// slow reader sees the newest state of each shard, not every step. Once it reports
// a gain, Local shows all that earlier leaders committed.
func (h *Host) Leadership() <-chan Leadership { return h.leaderC }

// Local is the newest snapshot of the local replica, false if there is none or if
// it has not caught up since its start.
func (h *Host) Local(shard uint64) (View, bool) {
	if r, ok := h.replica(shard); ok {
		return r.view()
	}
	return View{}, false
}

// DataShards lists the numbers of all data shards, in order, as a majority of the meta shard's voters knows them. Errors: those of List.
func (h *Host) DataShards(ctx context.Context) ([]uint64, error) {
	list, err := h.List(ctx, MetaShard, ListOptions{Prefix: shardmap.Prefix}, Linearizable)
	if err != nil {
		return nil, fmt.Errorf("list the shards: %w", err)
	}
	var shards []uint64
	for _, kv := range list.KVs {
		a, err := shardmap.Decode(kv.Key, kv.Value)
		if err != nil {
			return nil, fmt.Errorf("list the shards: %w", err)
		}
		if a.Shard != MetaShard {
			shards = append(shards, a.Shard)
		}
	}
	slices.Sort(shards)
	return shards, nil
}

// ShardsRead says that this host has read the meta shard's list of shards since it started, by whichever copy. Before that, Shards
// are those that it has replicas of, and what others have said.
func (h *Host) ShardsRead() bool { return h.routes.loaded() }

// Shards lists the numbers of the shards this host knows of, in order.
func (h *Host) Shards() []uint64 {
	known := map[uint64]bool{}
	for _, a := range h.routes.all() {
		known[a.Shard] = true
	}
	for _, d := range h.disk.replicas() {
		known[d.Shard] = true
	}
	shards := make([]uint64, 0, len(known))
	for s := range known {
		shards = append(shards, s)
	}
	slices.Sort(shards)
	return shards
}

// failedPatience bounds each half of the end of a host that has failed.
const failedPatience = time.Second

// Shutdown hands the local replicas' leaderships to other peers, then stops. The
// data stay in the folder. ctx bounds the handing over, not the stop.
func (h *Host) Shutdown(ctx context.Context) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.mu.Unlock()
	if !h.failed.happened() {
		h.HandOver(ctx)
		h.stop()
		return nil
	}
	return h.giveWay(ctx)
}

// giveWay ends a host that has failed: some of dragonboat's goroutines stand still, so
// nothing may wait for them for long. What is still able to goes to other peers first.
func (h *Host) giveWay(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, failedPatience)
	defer cancel()
	done := make(chan struct{})
	go func() {
		h.HandOver(ctx)
		h.stop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * failedPatience):
	}
	return nil
}

// spawn runs f as one of the host's loops, for which stop waits; false if it has begun to. A host that hands over still serves.
func (h *Host) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return false
	}
	h.loops.Go(f)
	return true
}

// stop ends the host at once, as a crash would but without losing the process.
func (h *Host) stop() {
	h.mu.Lock()
	h.closed = true
	h.cancel() // under the mutex: who spawns after it is refused, and who spawned before it is waited for
	h.mu.Unlock()
	if h.server != nil {
		h.server.stop()
	}
	h.routes.close()
	h.calling.Lock()
	h.nh.Close()
	h.loops.Wait()
	faulty.close(h)
	if err := h.crashes.close(); err != nil {
		h.cfg.Logger.Debug("close the crash log", "err", err)
	}
}

// HandOver transfers leaderships until none is left, there is nobody to take them,
// or ctx ends. A transfer may be lost without a trace, so it is asked for again. The
// host goes on serving.
func (h *Host) HandOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		waiting := false
		for _, r := range h.runningReplicas() {
			info, _ := h.leaders.get(r.shard)
			if !leads(info) {
				continue
			}
			if to, ok := h.successor(ctx, r); ok && h.nh.RequestLeaderTransfer(r.shard, to) == nil {
				waiting = true
			}
		}
		if !waiting {
			return
		}
		select {
		case <-ctx.Done():
			h.cfg.Logger.Warn("stopping with leaderships that nobody took over in time")
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// signal wakes everybody who waits for it.
type signal struct {
	mu sync.Mutex
	c  chan struct{}
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
