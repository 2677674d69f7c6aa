package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"shoal/consensus/logstore"
)

// FaultKind says what kind of fault a replica met.
type FaultKind string

// The kinds of faults.
const (
	// FaultRaft is an invariant that dragonboat found broken. It ends the process; its other shards come back with the next one.
	FaultRaft FaultKind = "raft"
	// FaultApply is a log entry that the state machine could not take. Only the replica stops.
	FaultApply FaultKind = "apply"
	// FaultDamage is a log or a snapshot that does not hold what was written there. Only the replica stops, for good.
	FaultDamage FaultKind = "damage"
	// FaultVersion is a log entry or a snapshot of a newer version. The peer stays down until it is of that version too.
	FaultVersion FaultKind = "version"
	// FaultDisk is a log store that cannot be written to. It ends the process.
	FaultDisk FaultKind = "disk"
	// faultRenewed records that a replica was given up for a new one.
	faultRenewed FaultKind = "renewed"
)

// A replica that met faultLimit faults within faultWindow is quarantined: left stopped until it is replaced.
const (
	faultLimit  = 3
	faultWindow = 10 * time.Minute
	// renewWindow is how long a shard's new replica has to hold out before it may be given up for another one.
	renewWindow = time.Hour
	// faultsKept bounds the file of faults.
	faultsKept = 64
)

// Fault is one thing that a replica, or the host as a whole (Replica is then 0), could not go on after.
type Fault struct {
	At      time.Time `json:"at"`
	Shard   uint64    `json:"shard"`
	Replica uint64    `json:"replica,omitempty"`
	Kind    FaultKind `json:"kind"`
	What    string    `json:"what"`
}

func (f Fault) where() string {
	if f.Replica == 0 {
		return "on this peer"
	}
	return fmt.Sprintf("in shard %d (replica %d)", f.Shard, f.Replica)
}

// Error is one sentence, and what to do.
func (f Fault) Error() string {
	switch f.Kind {
	case FaultVersion:
		return fmt.Sprintf("%s: %s: this version would diverge from the others, so the peer stays down: start the newer version", f.where(), f.What)
	case FaultDisk:
		return fmt.Sprintf("the store cannot be written to: %s: nothing that was confirmed is lost: see to the disk, then start the peer again", f.What)
	case FaultRaft:
		return fmt.Sprintf("raft found an invariant broken %s and the process has to begin anew, with its other shards: %s", f.where(), f.What)
	default:
		return fmt.Sprintf("%s: %s", f.where(), f.What)
	}
}

const faultsFile = "faults.json"

// faults reads what went wrong lately, oldest first. A file that cannot be read is one without faults: it helps to decide, no more.
func (d *disk) faults() []Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readFaults()
}

func (d *disk) readFaults() []Fault {
	f, err := d.fs.Open(filepath.Join(d.dir, faultsFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	var all []Fault
	if err != nil || json.Unmarshal(b, &all) != nil {
		return nil
	}
	return all
}

// note adds a fault to the file. The mutex is held over it all: two shards may have faults at once, and none may be lost.
func (d *disk) note(f Fault) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := append(d.readFaults(), f)
	return d.replace(faultsFile, all[max(0, len(all)-faultsKept):])
}

// lately counts the faults of a replica that count towards its quarantine.
func lately(all []Fault, shard, replica uint64, now time.Time) (count int, last Fault) {
	for _, f := range all {
		counts := f.Kind == FaultRaft || f.Kind == FaultApply
		// A fault with a date in the future was noted before the clock was set back.
		if counts && f.Shard == shard && f.Replica == replica && now.Sub(f.At) < faultWindow && now.Sub(f.At) > -faultWindow {
			count, last = count+1, f
		}
	}
	return count, last
}

// Failed waits until ctx ends, then returns nil, or until the host cannot go on: then the process has to end, after Shutdown, and the
// error, a Fault, is the sentence that it ends with.
func (h *Host) Failed(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.failed.c:
		return h.failed.get()
	}
}

// fail writes the fault down and tells the owner to end the process. It may be called from anywhere, with any lock of dragonboat's held,
// and does not wait for any.
func (h *Host) fail(f Fault) {
	f.At = time.Now()
	h.failed.set(f, func() {
		h.cfg.Logger.Error("the peer has to stop", "err", f.Error(), "shard", f.Shard, "replica", f.Replica, "kind", string(f.Kind))
		if f.Kind == FaultDisk {
			return
		}
		if err := h.disk.note(f); err != nil {
			h.cfg.Logger.Error("the fault could not be written down", "err", err)
		}
	})
	// What stands still will not answer, and the process ends once nobody waits for it.
	h.cancel()
}

// logFailed takes what the log store reports: damage of one replica's log stops that replica, all else the host.
func (h *Host) logFailed(err error) {
	var damage *logstore.DamageError
	if errors.As(err, &damage) {
		h.contain(Fault{Shard: damage.Shard, Replica: damage.Replica, Kind: FaultDamage, What: damage.Error()})
		return
	}
	h.fail(Fault{Kind: FaultDisk, What: err.Error()})
}

// contain takes one replica out of the process, which goes on, and decides whether it may try again.
func (h *Host) contain(f Fault) {
	if f.Kind == FaultVersion {
		h.fail(f)
		return
	}
	f.At = time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.contained[replicaKey{f.Shard, f.Replica}] {
		return
	}
	h.contained[replicaKey{f.Shard, f.Replica}] = true
	h.loops.Go(func() {
		h.cfg.Logger.Error("a replica stops", "err", f.Error(), "shard", f.Shard, "replica", f.Replica, "kind", string(f.Kind))
		failed := h.disk.note(f)
		if f.Kind == FaultDamage {
			failed = errors.Join(failed, h.quarantine(f.Shard, f.Replica, f.What))
		}
		if failed = errors.Join(failed, h.stopReplica(f.Shard, f.Replica)); failed != nil {
			h.cfg.Logger.Error("a replica could not be put away", "shard", f.Shard, "err", failed)
		}
		h.mu.Lock()
		delete(h.contained, replicaKey{f.Shard, f.Replica})
		h.mu.Unlock()
		h.changed.broadcast() // the reconciler starts it again, or does not
	})
}

// quarantine leaves a replica stopped, over restarts, until it is replaced.
func (h *Host) quarantine(shard, replica uint64, why string) error {
	_, err := h.disk.amend(shard, replica, func(d *diskReplica) {
		if !d.Removing {
			h.cfg.Logger.Error("replica quarantined", "shard", shard, "replica", replica, "why", why)
			d.Quarantine = why
		}
	})
	return err
}

// fit says why the replica must not be started, "" if it may.
func (h *Host) fit(d diskReplica) (string, error) {
	if d.Quarantine != "" {
		return d.Quarantine, nil
	}
	why := ""
	if n, last := lately(h.disk.faults(), d.Shard, d.Replica, time.Now()); n >= faultLimit {
		why = fmt.Sprintf("%d faults within %v, the last at %s: %s", n, faultWindow, last.At.UTC().Format(time.RFC3339), last.What)
	}
	if err := h.checkReplica(d); err != nil {
		if !errors.Is(err, logstore.ErrDamaged) {
			return "", err
		}
		why = err.Error()
		if err := h.disk.note(Fault{At: time.Now(), Shard: d.Shard, Replica: d.Replica, Kind: FaultDamage, What: why}); err != nil {
			return "", err
		}
	}
	if why == "" {
		return "", nil
	}
	return why, h.quarantine(d.Shard, d.Replica, why)
}

// checkReplica compares what is on the disk with what the replica has promised. Error: logstore.ErrDamaged.
func (h *Host) checkReplica(d diskReplica) error {
	if err := h.logs.Check(d.Shard, d.Replica); err != nil {
		return err
	}
	snapshot, err := h.logs.Snapshot(d.Shard, d.Replica)
	if err != nil || snapshot.Index == 0 || h.cfg.FS != nil {
		return err
	}
	path, err := snapshotPath(h.cfg.Dir, d, snapshot.Index)
	if err == nil {
		err = checkSnapshotFile(path)
	}
	if err != nil {
		return &logstore.DamageError{Shard: d.Shard, Replica: d.Replica, Cause: err}
	}
	return nil
}

// renew gives a quarantined replica up for a new one on this peer, if the shard does without it: its data are deleted once its group
// has removed it, and the new one gets all from the others. A shard that has just had that done is left to a human.
func (h *Host) renew(ctx context.Context, d diskReplica) error {
	why := fmt.Errorf("replica %d is quarantined: %s", d.Replica, d.Quarantine)
	for _, f := range h.disk.faults() {
		if f.Kind == faultRenewed && f.Shard == d.Shard && time.Since(f.At) < renewWindow {
			return fmt.Errorf("%w; it had replaced another at %s, so it is not replaced again by itself", why, f.At.UTC().Format(time.RFC3339))
		}
	}
	m, err := h.membersOf(ctx, d.Shard)
	if err != nil {
		return fmt.Errorf("%w; the shard has no majority without it that could replace it (see `peer recover`): %w", why, err)
	}
	if m.removed(d.Replica) {
		return nil
	}
	a, found, at, err := h.readAssignment(ctx, d.Shard)
	if err != nil || !found {
		return errors.Join(why, err)
	}
	if now, ok := a.Of(h.cfg.PeerID); !ok || now.ID != d.Replica {
		return nil // under way already
	}
	if err := h.disk.note(Fault{At: time.Now(), Shard: d.Shard, Replica: d.Replica, Kind: faultRenewed, What: d.Quarantine}); err != nil {
		return err
	}
	h.cfg.Logger.Warn("a quarantined replica is replaced by a new one", "shard", d.Shard, "replica", d.Replica)
	return h.writeAssignment(ctx, a.Renew(d.Replica), at)
}

// ending is the first fault that ends the host.
type ending struct {
	mu    sync.Mutex
	fault Fault
	c     chan struct{}
}

func newEnding() *ending { return &ending{c: make(chan struct{})} }

// set takes the first fault, does what has to be done before anybody acts on it, and wakes who waits.
func (f *ending) set(fault Fault, before func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.happened() {
		return
	}
	before()
	f.fault = fault
	close(f.c)
}

func (f *ending) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault
}

func (f *ending) happened() bool {
	select {
	case <-f.c:
		return true
	default:
		return false
	}
}

// foreignSettings are files that dragonboat would read from the working directory, before main, and take for its own.
var foreignSettings = []string{"dragonboat-hard-settings.json", "dragonboat-soft-settings.json"}

func refuseForeignSettings() error {
	for _, name := range foreignSettings {
		if _, err := os.Stat(name); err == nil {
			dir, err := os.Getwd()
			return errors.Join(fmt.Errorf("%s in the working directory %s would change how raft works: start in another directory, or remove it", name, dir), err)
		}
	}
	return nil
}
