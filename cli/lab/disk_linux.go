package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ext4's ioctl to end a mounted file system at once (fs/ext4/ext4.h, EXT4_IOC_SHUTDOWN), and its flag to leave the journal as it is.
const (
	shutdownRequest    = 0x8004587d
	shutdownNoLogFlush = 2
)

// giveDisk mounts a disk of so many bytes as the peer's data folder, which must not exist yet: an ext4 in a sparse file.
func (p *Peer) giveDisk(size int64) error {
	p.disk = p.Dir + ".disk"
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		return err
	}
	image, err := os.Create(p.disk)
	if err != nil {
		return err
	}
	if err := errors.Join(image.Truncate(size), image.Close()); err != nil {
		return err
	}
	if err := tool("mkfs.ext4", "-q", "-F", "-m", "0", p.disk); err != nil {
		return err
	}
	return p.mountDisk()
}

func (p *Peer) mountDisk() error {
	if err := tool("mount", "-o", "loop", p.disk, p.Dir); err != nil {
		return err
	}
	return os.Chmod(p.Dir, 0o700)
}

// FillDisk writes until nothing more fits on the peer's disk.
func (p *Peer) FillDisk() error { return fill(p.ballast()) }

// FreeDisk undoes FillDisk.
func (p *Peer) FreeDisk() error { return os.Remove(p.ballast()) }

func (p *Peer) ballast() string { return filepath.Join(p.Dir, "ballast") }

// BreakDisk makes every further write and fsync on the peer's disk fail with EIO, and forgets what was written and not yet synced: all
// that a disk may do that dies, or a machine that loses its power. RepairDisk brings the disk back.
func (p *Peer) BreakDisk() error {
	dir, err := os.Open(p.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), shutdownRequest, shutdownNoLogFlush); err != nil {
		return fmt.Errorf("ending the file system of %s: %w", p.Name, err)
	}
	return nil
}

// RepairDisk mounts a broken disk anew, which brings it to what was synced before it broke. Nothing of the peer may run.
func (p *Peer) RepairDisk() error {
	if err := unmountBelow(p.Dir); err != nil {
		return err
	}
	if err := tool("umount", p.Dir); err != nil { // it frees the loop device too
		return err
	}
	return p.mountDisk()
}

// FlipBit changes one bit among the last that the peer's store has written to its log, where is between 0, the very last, and 1. The peer
// must not run.
func (p *Peer) FlipBit(where float64) error {
	newest, err := p.newestLog()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(newest)
	if err != nil {
		return err
	}
	const reach = 4096
	end := len(bytes.TrimRight(text, "\x00")) // files are written into room that was kept for them
	at := end - 1 - int(where*reach)
	if at < reach {
		return nil // it has just been begun
	}
	text[at] ^= 1 << (at % 8)
	file, err := os.OpenFile(newest, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(text[at:at+1], int64(at)); err != nil {
		return err
	}
	return file.Sync()
}

// DropStore ends the peer's process and removes its copies of the cluster's state, as a peer asks for that cannot read them.
func (p *Peer) DropStore() error {
	return errors.Join(p.KillProcess(), os.RemoveAll(filepath.Join(p.Dir, "consensus")))
}

// newestLog is the file that the peer's store has written to last.
func (p *Peer) newestLog() (string, error) {
	files, err := filepath.Glob(filepath.Join(p.Dir, "consensus", "raft", "*", "*", "logstore", "*.segment"))
	if err != nil || len(files) == 0 {
		return "", errors.Join(fmt.Errorf("%s has no log", p.Name), err)
	}
	var newest string
	var changed time.Time
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		if newest == "" || info.ModTime().After(changed) {
			newest, changed = file, info.ModTime()
		}
	}
	return newest, nil
}

// removeDisk takes it away. Nothing of the peer may run.
func (p *Peer) removeDisk() error {
	if err := tool("umount", p.Dir); err != nil {
		return errors.Join(err, unix.Unmount(p.Dir, unix.MNT_DETACH))
	}
	return nil
}

// fill writes to a new file until the file system has no room.
func fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for size := 1 << 20; size > 0; {
		if _, err := file.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
