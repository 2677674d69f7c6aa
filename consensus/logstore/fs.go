package logstore

import (
	"io"
	"os"

	"github.com/cockroachdb/pebble/vfs"
	"github.com/lni/dragonboat/v4/config"
)

// pebbleFS hands the file system of dragonboat's configuration, which is another one than the host's only in tests and simulations, to
// pebble.
type pebbleFS struct{ config.IFS }

func (p pebbleFS) Create(name string) (vfs.File, error) { return p.IFS.Create(name) }

func (p pebbleFS) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.IFS.Open(name)
	if err != nil {
		return nil, err
	}
	for _, o := range options {
		o.Apply(f)
	}
	return f, nil
}

func (p pebbleFS) OpenDir(name string) (vfs.File, error) { return p.IFS.OpenDir(name) }

func (p pebbleFS) ReuseForWrite(from, to string) (vfs.File, error) {
	return p.IFS.ReuseForWrite(from, to)
}

func (p pebbleFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	u, err := p.IFS.GetDiskUsage(path)
	return vfs.DiskUsage{AvailBytes: u.AvailBytes, TotalBytes: u.TotalBytes, UsedBytes: u.UsedBytes}, err
}

func (p pebbleFS) Lock(name string) (io.Closer, error) { return p.IFS.Lock(name) }

func (p pebbleFS) Stat(name string) (os.FileInfo, error) { return p.IFS.Stat(name) }
