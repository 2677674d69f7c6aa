//go:build linux

package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// Names of the pinned namespaces' files in a sandbox's folder.
const (
	pinNet = "net"
	pinIPC = "ipc"
	pinUTS = "uts"
)

// pinNamespaces makes a sandbox's own namespaces and keeps them alive by bind
// mounts in folder. No process is needed for that: a pause process would cost
// memory and an exec for each pod.
func pinNamespaces(folder string, spec pods.SandboxSpec) error {
	wanted := map[string]int{}
	if !spec.HostNetwork {
		wanted[pinNet], wanted[pinUTS] = unix.CLONE_NEWNET, unix.CLONE_NEWUTS
	}
	if !spec.HostIPC {
		wanted[pinIPC] = unix.CLONE_NEWIPC
	}
	if len(wanted) == 0 {
		return nil
	}
	return onOwnThread(func() error { return enterAndPin(folder, spec, wanted) })
}

// onOwnThread runs f on a thread that ends with it, and takes the strange
// namespaces with it that f has entered. It is never the main thread: that one
// cannot end, holds its namespaces as long as the process lives, and is what
// /proc/<pid>/ns shows to others.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, which is what ends the thread
		if unix.Gettid() != unix.Getpid() {
			result <- f()
			return
		}
		// While this goroutine holds the main thread, another gets a different one.
		defer runtime.UnlockOSThread()
		result <- onOwnThread(f)
	}()
	return <-result
}

func enterAndPin(folder string, spec pods.SandboxSpec, wanted map[string]int) error {
	flags := 0
	for _, flag := range wanted {
		flags |= flag
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	if !spec.HostNetwork {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("hostname %q: %w", spec.Hostname, err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	for name, value := range spec.Sysctls {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("%w: sysctl %s: %w", pods.ErrConfig, name, err)
		}
	}
	for name := range wanted {
		pin := filepath.Join(folder, name)
		if err := os.WriteFile(pin, nil, 0o400); err != nil {
			return diskError(err)
		}
		if err := unix.Mount("/proc/thread-self/ns/"+name, pin, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace: %w", name, err)
		}
	}
	return nil
}

// loopbackUp brings lo up in the calling thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// pinned reports whether path is a bind-mounted namespace, not the empty file
// that a reboot or a lost mount leaves.
func pinned(path string) bool {
	var info unix.Statfs_t
	return unix.Statfs(path, &info) == nil && info.Type == unix.NSFS_MAGIC
}

// unpin unmounts what lies at path and removes it.
func unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// inNetwork runs f on a thread inside the network namespace at path.
func inNetwork(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}
