package consensus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"shoal/consensus/shardmap"
)

// routes knows which peers to ask about a shard: from the assignments, as they were
// last read, and from hints that answers carry.
type routes struct {
	cfg Config

	mu          sync.Mutex
	assignments map[uint64]shardmap.Assignment
	complete    bool
	leaders     map[uint64]string
	conns       map[string]*grpc.ClientConn
	closed      bool
	// grown tells of shards that were not known before.
	grown signal
}

func newRoutes(cfg Config) *routes {
	return &routes{
		cfg:         cfg,
		assignments: map[uint64]shardmap.Assignment{},
		leaders:     map[uint64]string{},
		conns:       map[string]*grpc.ClientConn{},
	}
}

func (r *routes) assign(a shardmap.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.assignments[a.Shard]; !known {
		defer r.grown.broadcast()
	}
	r.assignments[a.Shard] = a
}

// suggest takes an assignment from another peer, unless there is one that was read
// from the meta shard.
func (r *routes) suggest(a shardmap.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, known := r.assignments[a.Shard]; !r.complete && (!known || old.Next < a.Next) {
		if !known {
			defer r.grown.broadcast()
		}
		r.assignments[a.Shard] = a
	}
}

func (r *routes) setLoaded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete = true
}

// loaded says that all assignments were read from the meta shard once.
func (r *routes) loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.complete
}

func (r *routes) assignment(shard uint64) (shardmap.Assignment, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.assignments[shard]
	return a, ok
}

func (r *routes) knows(shard uint64) bool {
	_, ok := r.assignment(shard)
	return ok
}

func (r *routes) all() []shardmap.Assignment {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]shardmap.Assignment, 0, len(r.assignments))
	for _, a := range r.assignments {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b shardmap.Assignment) int { return int(a.Shard) - int(b.Shard) })
	return all
}

func (r *routes) hint(shard uint64, leader string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leader != "" {
		r.leaders[shard] = leader
	}
}

func (r *routes) unhint(shard uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.leaders, shard)
}

// lose forgets the connection to a peer, which ends what is under way on it, and that it leads anything.
func (r *routes) lose(peer string) {
	r.mu.Lock()
	conn, ok := r.conns[peer]
	delete(r.conns, peer)
	maps.DeleteFunc(r.leaders, func(_ uint64, leader string) bool { return leader == peer })
	r.mu.Unlock()
	if !ok {
		return
	}
	if err := conn.Close(); err != nil {
		r.cfg.Logger.Debug("close connection", "peer", peer, "err", err)
	}
}

func (r *routes) leader(shard uint64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaders[shard]
}

// candidates lists the other peers to ask about a shard, best first: its leader,
// those that are assigned to it and alive, all that are alive (one of them knows
// more than we), those that are assigned and look dead.
func (r *routes) candidates(shard uint64) []string {
	alive := r.cfg.Peers()
	r.mu.Lock()
	leader, a := r.leaders[shard], r.assignments[shard]
	r.mu.Unlock()
	var list []string
	add := func(peer string) {
		if peer != "" && peer != r.cfg.PeerID && !slices.Contains(list, peer) {
			list = append(list, peer)
		}
	}
	add(leader)
	for _, replica := range a.Replicas {
		if slices.Contains(alive, replica.Peer) {
			add(replica.Peer)
		}
	}
	// Thousands may be alive: only the few before them can be among them a second time.
	first := list
	list = slices.Grow(list, len(alive)+len(a.Replicas))
	for _, peer := range alive {
		if peer != r.cfg.PeerID && !slices.Contains(first, peer) {
			list = append(list, peer)
		}
	}
	for _, replica := range a.Replicas {
		if !slices.Contains(alive, replica.Peer) && replica.Peer != r.cfg.PeerID && !slices.Contains(first, replica.Peer) {
			list = append(list, replica.Peer)
		}
	}
	return list
}

func (r *routes) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for peer, conn := range r.conns {
		if err := conn.Close(); err != nil {
			r.cfg.Logger.Debug("close connection", "peer", peer, "err", err)
		}
	}
}

// followAssignments keeps the assignments as the meta shard has them.
func (h *Host) followAssignments(ctx context.Context) {
	for ctx.Err() == nil {
		err := h.followOnce(ctx)
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return
		}
		h.cfg.Logger.Debug("assignments are not readable", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (h *Host) followOnce(ctx context.Context) error {
	list, err := h.List(ctx, MetaShard, ListOptions{Prefix: shardmap.Prefix}, Local)
	if err != nil {
		return err
	}
	if list.Revision == 0 {
		// It is just being founded. A watch after 0 would begin from then on, and might miss the founding.
		return errors.New("the meta shard holds nothing yet")
	}
	for _, kv := range list.KVs {
		h.learn(kv.Key, kv.Value)
	}
	if len(list.KVs) > 0 {
		h.routes.setLoaded()
	}
	h.changed.broadcast()
	w, err := h.Watch(ctx, MetaShard, WatchOptions{Prefix: shardmap.Prefix, After: list.Revision, Stay: true})
	if err != nil {
		return err
	}
	defer w.Stop()
	for events := range w.Events() {
		for _, ev := range events {
			if !ev.Delete {
				h.learn(ev.Key, ev.Value)
			}
		}
		h.routes.setLoaded()
		h.changed.broadcast()
	}
	return w.Err()
}

func (h *Host) learn(key string, value []byte) {
	a, err := shardmap.Decode(key, value)
	if err != nil {
		h.cfg.Logger.Error("unusable assignment", "err", err)
		return
	}
	h.routes.assign(a)
}

// readAssignment reads a shard's assignment with a quorum, with its Mod for a
// conditional write.
func (h *Host) readAssignment(ctx context.Context, shard uint64) (a shardmap.Assignment, found bool, c conditional, err error) {
	key := shardmap.Key(shard)
	kv, found, _, err := h.Get(ctx, MetaShard, key, Linearizable)
	if err != nil || !found {
		return a, false, conditional{}, err
	}
	if a, err = shardmap.Decode(kv.Key, kv.Value); err != nil {
		return a, false, conditional{}, err
	}
	return a, true, conditional{key: key, mod: kv.Mod}, nil
}

// writeAssignment replaces what readAssignment read. Losing the race is no error:
// whoever won it is seen in the next round.
func (h *Host) writeAssignment(ctx context.Context, a shardmap.Assignment, c conditional) error {
	_, err := h.Propose(ctx, MetaShard, c.replace(a.Encode()))
	if err != nil {
		return fmt.Errorf("record the assignment of shard %d: %w", a.Shard, err)
	}
	return nil
}
