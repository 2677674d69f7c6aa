package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/dragonboat/v4/tools"

	"shoal/consensus/logstore"
	"shoal/consensus/store"
)

// A shard that has lost its majority for good goes on from one surviving copy: the
// copy is exported, which needs no quorum, and imported under a new replica ID as
// the only voter of a group that counts all former replicas as removed, so those
// delete themselves should they ever come back. The import rewrites raft's log and
// needs raft to be stopped: it happens at the next Open.

const (
	recoverDir    = "recover"
	tailFile      = "tail"
	exportTimeout = 5 * time.Minute
	// spareIDs is how far above the known replica IDs a recovered copy's ID lies when
	// the meta shard is lost too: some may have been given out that are not known here.
	spareIDs = 1000
)

// recovery is a planned or half-done recovery of one shard, kept in consensus.json.
type recovery struct {
	Shard uint64 `json:"shard"`
	// From is the surviving replica, Replica the one that it goes on as.
	From    uint64 `json:"from"`
	Replica uint64 `json:"replica"`
	// Imported says that the copy has been imported and is to be finished: the end of
	// the old log proposed again, the assignment written.
	Imported bool `json:"imported,omitempty"`
}

// Recover prepares this host's copies of the shards to become their shards' only
// voters. The caller has to shut the host down and open it again: that is when it
// happens. What other copies had and this one lacks is lost.
//
// Every shard must have lost its majority for good (Loss.Final), and the local copy
// must be the best within reach. Otherwise nothing is changed.
func (h *Host) Recover(ctx context.Context, shards []uint64) error {
	losses, err := h.Losses(ctx)
	if err != nil {
		return err
	}
	lost := map[uint64]Loss{}
	for _, l := range losses {
		lost[l.Shard] = l
	}
	for _, shard := range shards {
		l, ok := lost[shard]
		if !ok {
			return fmt.Errorf("shard %d has a quorum: there is nothing to recover", shard)
		}
		if err := h.mayRecover(l); err != nil {
			return err
		}
	}
	_, metaLost := lost[MetaShard]
	var plans []recovery
	for _, shard := range shards {
		plan, err := h.prepare(ctx, shard, metaLost)
		if err != nil {
			return fmt.Errorf("recover shard %d: %w", shard, err)
		}
		plans = append(plans, plan)
	}
	return h.disk.plan(plans)
}

// mayRecover refuses what could lose more than it must.
func (h *Host) mayRecover(l Loss) error {
	if !l.Final() {
		return fmt.Errorf("shard %d: %d of its %d voters answer, which is a majority: wait for them to elect a leader",
			l.Shard, len(l.Voters)-len(l.Missing), len(l.Voters))
	}
	for _, c := range l.Copies {
		if c.Peer != h.cfg.PeerID {
			continue
		}
		if best := l.Copies[0]; c.LastTerm != best.LastTerm || c.LastIndex != best.LastIndex {
			return fmt.Errorf("shard %d: the copy on %s is newer than the one here: recover it there", l.Shard, h.cfg.PeerName(best.Peer))
		}
		return nil
	}
	return fmt.Errorf("shard %d: there is no copy of it here, or it is still being read", l.Shard)
}

// prepare exports the local copy, and writes down in the meta shard, if that has a
// quorum, who holds the shard from now on.
func (h *Host) prepare(ctx context.Context, shard uint64, metaLost bool) (recovery, error) {
	r, here := h.replica(shard)
	if !here {
		return recovery{}, errNoReplica
	}
	if err := h.export(ctx, r); err != nil {
		return recovery{}, err
	}
	plan := recovery{Shard: shard, From: r.id}
	if metaLost {
		known, _ := h.routes.assignment(shard)
		plan.Replica = max(known.Next, r.id+1) + spareIDs
		return plan, nil
	}
	a, found, at, err := h.readAssignment(ctx, shard)
	if err != nil || !found {
		return recovery{}, errors.Join(errors.New("its assignment is not readable"), err)
	}
	plan.Replica = max(a.Next, r.id+1)
	return plan, h.writeAssignment(ctx, a.Recover(h.cfg.PeerID, h.disk.identity(), plan.Replica), at)
}

// export writes the copy's state, and what its log holds beyond it, into a folder.
func (h *Host) export(ctx context.Context, r *replica) error {
	fs, dir := h.disk.fs, h.disk.recoverDir(r.shard)
	if err := errors.Join(fs.RemoveAll(dir), fs.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	request, err := h.nh.RequestSnapshot(r.shard, dragonboat.SnapshotOption{Exported: true, ExportPath: dir}, exportTimeout)
	if err != nil {
		return fmt.Errorf("export its state: %w", err)
	}
	defer request.Release()
	select {
	case <-ctx.Done():
		return fmt.Errorf("export its state: %w", ctx.Err())
	case out := <-request.ResultC():
		if !out.Completed() {
			return fmt.Errorf("export its state: %s", outcomeName(out))
		}
		return h.exportTail(r, out.SnapshotIndex())
	}
}

// exportTail writes the transactions in the log behind the index: the lost majority
// may have confirmed them. Each is proposed again after the import; a request ID
// keeps it from being applied twice.
func (h *Host) exportTail(r *replica, index uint64) error {
	log, err := h.nh.GetLogReader(r.shard)
	if err != nil {
		return err
	}
	_, last := log.GetRange()
	var tail []store.Transaction
	for next := index + 1; next <= last; {
		entries, err := log.Entries(next, last+1, 64<<20)
		if err != nil || len(entries) == 0 {
			return errors.Join(fmt.Errorf("read the end of its log, from entry %d", next), err)
		}
		for _, e := range entries {
			if tx, ok := transactionIn(e); ok {
				tail = append(tail, tx)
			}
		}
		next = entries[len(entries)-1].Index + 1
	}
	var b []byte
	for _, tx := range tail {
		encoded := store.AppendTransaction(nil, tx)
		b = append(binary.AppendUvarint(b, uint64(len(encoded))), encoded...)
	}
	return h.disk.writeSynced(filepath.Join(h.disk.recoverDir(r.shard), tailFile), b)
}

// transactionIn decodes the transaction of a log entry; entries of raft's own hold
// none. dragonboat puts one byte, which is zero without compression and session,
// before a proposal (internal/rsm/encoded.go).
func transactionIn(e raftpb.Entry) (store.Transaction, bool) {
	if e.Type != raftpb.EncodedEntry || len(e.Cmd) < 2 || e.Cmd[0] != 0 {
		return store.Transaction{}, false
	}
	tx, err := store.DecodeTransaction(e.Cmd[1:])
	return tx, err == nil && len(tx.Ops) > 0
}

// importRecoveries carries planned recoveries out. Raft is not running yet.
func importRecoveries(cfg Config, d *disk, logs *logstore.Factory) error {
	for _, plan := range d.recoveries() {
		if plan.Imported {
			continue
		}
		from, err := d.exported(plan.Shard)
		if err != nil {
			return fmt.Errorf("recover shard %d: %w", plan.Shard, err)
		}
		members := map[uint64]string{plan.Replica: cfg.PeerID}
		if err := tools.ImportSnapshot(nodeHostConfig(cfg, logs, &transportFactory{cfg: cfg}, nil, nil), from, members, plan.Replica); err != nil {
			return fmt.Errorf("recover shard %d from %s: %w", plan.Shard, from, err)
		}
		if err := d.imported(plan); err != nil {
			return err
		}
		cfg.Logger.Warn("a shard goes on from this peer's copy alone", "shard", plan.Shard, "replica", plan.Replica)
	}
	return nil
}

// finishRecoveries completes imported recoveries as soon as their shards lead, the
// meta shard's first, because the others' assignments are in it.
func (h *Host) finishRecoveries(ctx context.Context) {
	for {
		waiting := false
		for _, plan := range h.disk.recoveries() {
			bounded, cancel := context.WithTimeout(ctx, stepTimeout)
			err := h.finishRecovery(bounded, plan)
			cancel()
			if err != nil && ctx.Err() == nil {
				waiting = true
				h.cfg.Logger.Warn("a recovered shard is not complete yet", "shard", plan.Shard, "err", err)
			}
		}
		if !waiting {
			h.changed.broadcast()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settledEvery):
		}
	}
}

func (h *Host) finishRecovery(ctx context.Context, plan recovery) error {
	tail, err := h.disk.tail(plan.Shard)
	if err != nil {
		return err
	}
	for _, tx := range tail {
		if _, _, err := h.propose(ctx, plan.Shard, store.AppendTransaction(nil, tx)); err != nil {
			return fmt.Errorf("propose the end of the old log again: %w", err)
		}
	}
	a, found, at, err := h.readAssignment(ctx, plan.Shard)
	if err != nil {
		return err
	}
	if !found {
		return errors.New("it is not recorded in the meta shard")
	}
	if mine, ok := a.Of(h.cfg.PeerID); !ok || mine.ID != plan.Replica {
		a = a.Recover(h.cfg.PeerID, h.disk.identity(), plan.Replica)
		if err := h.writeAssignment(ctx, a, at); err != nil {
			return err
		}
		if a, found, _, err = h.readAssignment(ctx, plan.Shard); err != nil || !found {
			return errors.Join(errors.New("its assignment is not readable"), err)
		}
		if mine, ok = a.Of(h.cfg.PeerID); !ok || mine.ID != plan.Replica {
			return errors.New("its assignment was changed meanwhile")
		}
	}
	h.routes.assign(a)
	return h.disk.endRecovery(plan.Shard)
}

// recovering says that a shard's recovery is under way here: until it is finished,
// the assignment is not to be believed.
func (h *Host) recovering(shard uint64) bool {
	for _, plan := range h.disk.recoveries() {
		if plan.Shard == shard {
			return true
		}
	}
	return false
}

func (d *disk) recoverDir(shard uint64) string {
	return filepath.Join(d.dir, recoverDir, fmt.Sprint(shard))
}

// exported is the folder that raft made of an exported state.
func (d *disk) exported(shard uint64) (string, error) {
	dir := d.recoverDir(shard)
	names, err := d.fs.List(dir)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if strings.HasPrefix(filepath.Base(name), "snapshot-") {
			return filepath.Join(dir, filepath.Base(name)), nil
		}
	}
	return "", fmt.Errorf("%s holds no exported state", dir)
}

// tail reads what exportTail wrote.
func (d *disk) tail(shard uint64) ([]store.Transaction, error) {
	f, err := d.fs.Open(filepath.Join(d.recoverDir(shard), tailFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	var tail []store.Transaction
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, store.ErrMalformed
		}
		tx, err := store.DecodeTransaction(b[n : n+int(size)])
		if err != nil {
			return nil, err
		}
		tail, b = append(tail, tx), b[n+int(size):]
	}
	return tail, nil
}

// recoveries lists what is planned or half done, the meta shard first.
func (d *disk) recoveries() []recovery {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]recovery(nil), d.state.Recoveries...)
}

func (d *disk) plan(plans []recovery) error {
	return d.change(func(s *diskState) { s.Recoveries = plans })
}

// imported swaps the surviving replica for the one that it goes on as, in one write.
func (d *disk) imported(plan recovery) error {
	return d.change(func(s *diskState) {
		for i := range s.Replicas {
			if s.Replicas[i].Shard == plan.Shard {
				s.Replicas[i].Removing = true
			}
		}
		s.Replicas = append(s.Replicas, diskReplica{Shard: plan.Shard, Replica: plan.Replica})
		for i := range s.Recoveries {
			if s.Recoveries[i].Shard == plan.Shard {
				s.Recoveries[i].Imported = true
			}
		}
	})
}

// endRecovery forgets a finished recovery, then its files.
func (d *disk) endRecovery(shard uint64) error {
	err := d.change(func(s *diskState) {
		var rest []recovery
		for _, plan := range s.Recoveries {
			if plan.Shard != shard {
				rest = append(rest, plan)
			}
		}
		s.Recoveries = rest
	})
	if err != nil {
		return err
	}
	return d.fs.RemoveAll(d.recoverDir(shard))
}
