package consensustest

import (
	"errors"
	"path/filepath"

	"github.com/lni/vfs"

	"shoal/consensus"
)

// Disk is a disk in memory that keeps the rules of a real one: what was not synced is lost with the power.
type Disk struct{ fs *vfs.MemFS }

// NewDisk returns an empty disk.
func NewDisk() *Disk { return &Disk{vfs.NewStrictMem()} }

// FS is what a host keeps its store on.
func (d *Disk) FS() consensus.FS { return d.fs }

// Make makes a folder durably, with all the folders above it.
func (d *Disk) Make(dir string) error {
	if err := d.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		folder, err := d.fs.OpenDir(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(folder.Sync(), folder.Close()); err != nil || dir == filepath.Dir(dir) {
			return err
		}
	}
}

// Fail makes everything that is written from now on vanish at Restore, synced or not.
func (d *Disk) Fail() { d.fs.SetIgnoreSyncs(true) }

// Restore is the disk after the power came back.
func (d *Disk) Restore() {
	d.fs.ResetToSyncedState()
	d.fs.SetIgnoreSyncs(false)
}
