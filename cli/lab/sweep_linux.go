package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"
)

// processesOf finds every process that belongs to a peer: those that live in its network namespace, those whose command line names
// one of its folders (shims), and those in its cgroups (containers).
func processesOf(namespace string, folders []string, cgroup string) []int {
	var inode uint64
	if info, err := os.Stat(filepath.Join("/run/netns", namespace)); err == nil {
		inode = info.Sys().(*syscall.Stat_t).Ino
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if inNamespace(pid, inode) || names(pid, folders) || inCgroup(pid, cgroup) {
			found = append(found, pid)
		}
	}
	return found
}

func inNamespace(pid int, inode uint64) bool {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && inode != 0 && info.Sys().(*syscall.Stat_t).Ino == inode
}

func names(pid int, folders []string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && slices.ContainsFunc(folders, func(folder string) bool {
		return bytes.Contains(line, []byte(folder+"/")) || bytes.Contains(line, []byte(folder+"\x00"))
	})
}

func inCgroup(pid int, cgroup string) bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && cgroup != "" && strings.Contains(string(groups), cgroup+"/")
}

// killAll ends the processes that find returns with SIGKILL until there are none, for at most five seconds. A dying shim may still
// start a helper, which is why one pass is not enough.
func killAll(find func() []int) error {
	var left []int
	err := wait.PollUntilContextTimeout(context.Background(), 10*time.Millisecond, 5*time.Second, true, func(context.Context) (bool, error) {
		left = find()
		for _, pid := range left {
			// A process that ended by itself in between is what we want.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("processes %v do not end: %w", left, err)
	}
	return nil
}

// unmountBelow detaches every mount under a folder, the deepest first.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	slices.Sort(points)
	slices.Reverse(points)
	var failed []error
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			failed = append(failed, fmt.Errorf("unmounting %s: %w", point, err))
		}
	}
	return errors.Join(failed...)
}

// removeCgroups removes a cgroup and those below it in every hierarchy.
func removeCgroups(cgroup string) error {
	var failed []error
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, root := range append(roots, "/sys/fs/cgroup") {
		top := filepath.Join(root, cgroup)
		var dirs []string
		// What vanishes while walking is gone already.
		_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := removeCgroup(dir); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// removeCgroup waits a moment for the kernel to let go of processes that were just killed.
func removeCgroup(dir string) error {
	var busy error
	err := wait.PollUntilContextTimeout(context.Background(), 10*time.Millisecond, 2*time.Second, true, func(context.Context) (bool, error) {
		busy = os.Remove(dir)
		return busy == nil || errors.Is(busy, os.ErrNotExist), nil
	})
	if err != nil {
		return fmt.Errorf("removing cgroup: %w", busy)
	}
	return nil
}
