//go:build linux

package fence

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Between two looks into a pod's cgroups, and how often they are looked into
// before the Watchdog turns to the next pod. It comes back at its next poll.
const (
	killPause  = 5 * time.Millisecond
	killRounds = 20
)

// kill sends SIGKILL to every process of the pod, again and again until there
// is none: processes make new ones. It returns how many there were.
func (p Pod) kill() (int, error) {
	seen := map[int]bool{}
	for range killRounds {
		pids, err := p.processes()
		if err != nil {
			return len(seen), err
		}
		if len(pids) == 0 {
			return len(seen), nil
		}
		for pid := range pids {
			seen[pid] = true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return len(seen), fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		time.Sleep(killPause)
	}
	return len(seen), errors.New("processes are left, trying again")
}

// processes are the IDs of all processes of the pod, in any hierarchy.
func (p Pod) processes() (map[int]bool, error) {
	pids := map[int]bool{}
	var failed []error
	for _, top := range p.Cgroups {
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case gone(err):
				return nil // it vanished while we walked
			case err != nil:
				return err
			case !entry.IsDir():
				return nil
			case p.Spare != "" && path == filepath.Join(top, p.Spare):
				return fs.SkipDir
			}
			return readProcesses(filepath.Join(path, "cgroup.procs"), pids)
		})
		failed = append(failed, err)
	}
	if len(pids) > 0 {
		return pids, nil // one broken hierarchy does not protect what another shows
	}
	return nil, errors.Join(failed...)
}

// readProcesses adds the IDs that a cgroup.procs file lists. 0 stands for a
// process of another pid namespace, and for kill(2) means the caller's group.
func readProcesses(path string, pids map[int]bool) error {
	data, err := os.ReadFile(path)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if pid > 0 {
			pids[pid] = true
		}
	}
	return nil
}

// gone reports whether a cgroup was removed: an open file of it gives ENODEV.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
