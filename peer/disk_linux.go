package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The store's log cannot go on without room, and raft's library ends the process in the middle of whatever it does when a write fails. So
// the peer stops in order before that, and keeps room aside for stopping.
const (
	reserveName  = "reserve"
	reserveBytes = 32 << 20
	// leastFree is how much must be free besides the reserve.
	leastFree    = 16 << 20
	diskInterval = 200 * time.Millisecond
)

// reserve keeps room aside in the data folder. Its error is one sentence for the user.
func (c Config) reserve() error {
	file, err := os.OpenFile(filepath.Join(c.DataDir, reserveName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(allocate(file), file.Close())
	}
	if err != nil {
		return fmt.Errorf("the data folder cannot be written to: keeping %d MiB aside for an orderly stop: %w", reserveBytes>>20, err)
	}
	return c.checkRoom()
}

func allocate(file *os.File) error {
	err := syscall.Fallocate(int(file.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return nil // a file system that cannot promise room; the watch below still looks
	}
	return err
}

// checkRoom fails when less than leastFree is free.
func (c Config) checkRoom() error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(c.DataDir, &disk); err != nil {
		return fmt.Errorf("the data folder %s: %w", c.DataDir, err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < leastFree {
		return fmt.Errorf("the data folder cannot be written to: the disk of %s has %d MiB left and %d are needed (%w): make room, then start the peer again; nothing that was confirmed is lost",
			c.DataDir, free>>20, leastFree>>20, syscall.ENOSPC)
	}
	return nil
}

// watchDisk ends the peer, by its error, when the disk is nearly full. The reserve is given up for the way down.
func (p *Peer) watchDisk(ctx context.Context) error {
	for {
		if full := p.cfg.checkRoom(); errors.Is(full, syscall.ENOSPC) {
			if err := os.Remove(filepath.Join(p.cfg.DataDir, reserveName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(full, err)
			}
			return full
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(diskInterval):
		}
	}
}
