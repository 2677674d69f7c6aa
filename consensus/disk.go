package consensus

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/vfs"
)

const (
	diskFile = "consensus.json"
	// diskFormat 2 has our own raft log, which earlier versions would not find.
	diskFormat = 2
)

// diskState is what consensus.json says: whose folder this is and which replicas
// live in it.
type diskState struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Peer    string `json:"peer"`
	// Disk is drawn when the folder is made. A replica ID is bound to it, so that a
	// wiped disk cannot come back under an ID that has voted (raft would diverge).
	Disk string `json:"disk"`
	// Founding is true from the start of a founding to its end.
	Founding bool          `json:"founding,omitempty"`
	Replicas []diskReplica `json:"replicas"`
	// Recoveries are planned, or imported and not finished; the meta shard's is first.
	Recoveries []recovery `json:"recoveries,omitempty"`
}

type diskReplica struct {
	Shard   uint64 `json:"shard"`
	Replica uint64 `json:"replica"`
	// NonVoting is how the replica was first started. It stays true after the
	// promotion: the log still holds the entry that added it as non-voting, and
	// dragonboat refuses to replay that with another flag.
	NonVoting bool `json:"nonVoting"`
	// Removing says that the replica left its shard and its data are being deleted.
	Removing bool `json:"removing,omitempty"`
	// Quarantine is why the replica is left stopped, "" if it is not.
	Quarantine string `json:"quarantine,omitempty"`
}

// disk owns consensus.json.
type disk struct {
	fs  config.IFS
	dir string

	mu    sync.Mutex
	state diskState
}

// openDisk reads or makes the folder's identity. Errors: ErrForeignData,
// ErrNewerFormat.
func openDisk(fs config.IFS, dir, cluster, peer string) (*disk, error) {
	if fs == nil {
		fs = vfs.Default
	}
	d := &disk{fs: fs, dir: dir}
	if err := errors.Join(fs.MkdirAll(dir, 0o700), d.syncDir(filepath.Dir(dir))); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	b, err := d.read()
	if errors.Is(err, os.ErrNotExist) {
		var id [8]byte
		if _, err := rand.Read(id[:]); err != nil {
			return nil, err
		}
		d.state = diskState{Format: diskFormat, Cluster: cluster, Peer: peer, Disk: hex.EncodeToString(id[:])}
		return d, d.write(d.state)
	}
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	path := filepath.Join(dir, diskFile)
	if err := json.Unmarshal(b, &d.state); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	switch s := d.state; {
	case s.Format > diskFormat:
		return nil, fmt.Errorf("%w: %s has format %d, this version knows %d: start a newer version",
			ErrNewerFormat, path, s.Format, diskFormat)
	case s.Cluster != cluster:
		return nil, fmt.Errorf("%w: %s is of cluster %s, not of %s", ErrForeignData, path, s.Cluster, cluster)
	case s.Peer != peer:
		return nil, fmt.Errorf("%w: %s is of peer %s, this is %s", ErrForeignData, path, s.Peer, peer)
	}
	return d, nil
}

func (d *disk) read() ([]byte, error) {
	f, err := d.fs.Open(filepath.Join(d.dir, diskFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (d *disk) write(s diskState) error { return d.replace(diskFile, s) }

// replace writes a file anew, as JSON, so that a crash leaves the old or the new one.
func (d *disk) replace(name string, content any) error {
	b, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, name)
	if err := d.writeSynced(path+".new", append(b, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := d.fs.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := d.syncDir(d.dir); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// syncDir makes the names in a folder durable.
func (d *disk) syncDir(path string) error {
	dir, err := d.fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *disk) writeSynced(path string, b []byte) error {
	f, err := d.fs.Create(path)
	if err != nil {
		return err
	}
	if host, ok := f.(interface{ Chmod(os.FileMode) error }); ok {
		if err := host.Chmod(0o600); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func (d *disk) identity() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Disk
}

func (d *disk) replicas() []diskReplica {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]diskReplica(nil), d.state.Replicas...)
}

func (d *disk) founded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.state.Replicas) > 0 && !d.state.Founding
}

// change writes an altered state down and then takes it over.
func (d *disk) change(alter func(*diskState)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.state
	next.Replicas = slices.Clone(d.state.Replicas)
	next.Recoveries = slices.Clone(d.state.Recoveries)
	alter(&next)
	if err := d.write(next); err != nil {
		return err
	}
	d.state = next
	return nil
}

func (d *disk) setFounding(on bool) error {
	return d.change(func(s *diskState) { s.Founding = on })
}

// put records a replica, or a change of it, before anything of it is started.
func (d *disk) put(r diskReplica) error {
	return d.change(func(s *diskState) {
		for i, old := range s.Replicas {
			if old.Shard == r.Shard && old.Replica == r.Replica {
				s.Replicas[i] = r
				return
			}
		}
		s.Replicas = append(s.Replicas, r)
	})
}

// amend changes what is recorded of a replica, unless it has been dropped: whoever looked at the records before must not bring one back.
func (d *disk) amend(shard, replica uint64, alter func(*diskReplica)) (found bool, err error) {
	err = d.change(func(s *diskState) {
		for i, r := range s.Replicas {
			if r.Shard == shard && r.Replica == replica {
				found = true
				alter(&s.Replicas[i])
			}
		}
	})
	return found, err
}

// drop forgets a replica whose data are deleted.
func (d *disk) drop(shard, replica uint64) error {
	return d.change(func(s *diskState) {
		s.Replicas = slices.DeleteFunc(s.Replicas, func(r diskReplica) bool { return r.Shard == shard && r.Replica == replica })
	})
}
