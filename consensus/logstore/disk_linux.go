package logstore

import (
	"errors"

	"github.com/lni/vfs"
	"golang.org/x/sys/unix"
)

// descriptor is what files of the host have and files in memory have not.
type descriptor interface{ Fd() uintptr }

// syncData makes a file's content durable. Unlike fsync it leaves out times, which would cost a write to the file system's journal.
func syncData(f vfs.File) error {
	file, ok := f.(descriptor)
	if !ok {
		return f.Sync()
	}
	for {
		if err := unix.Fdatasync(int(file.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// preallocate gives the file that size, zeros without writing them. File systems that cannot are left to grow the file.
func preallocate(f vfs.File, size int64) error {
	file, ok := f.(descriptor)
	if !ok {
		return nil
	}
	for {
		switch err := unix.Fallocate(int(file.Fd()), 0, 0, size); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		default:
			return err
		}
	}
}
