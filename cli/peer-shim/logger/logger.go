//go:build linux

// Package logger writes one container's CRI log as a process beside a foreign
// shim, by containerd's protocol for logging programs: descriptors 3 and 4 are
// the container's output, closing 5 says that we are ready.
//
// Source: https://github.com/containerd/containerd/blob/main/docs/logging.md
package logger

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"shoal/runtime/containerd/crilog"
)

// Run copies until both streams have ended. url is a crilog.Target's.
func Run(url string) error {
	target, ok, err := crilog.ParseTarget(url)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%q is no crilog URL", url)
	}
	// Sent when the container is deleted; the end of the streams comes with it,
	// and what is still in them must be written.
	signal.Ignore(unix.SIGTERM)
	log, err := crilog.Open(target)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	failed := make([]error, 2)
	for i, name := range []string{"stdout", "stderr"} {
		fd := 3 + i
		// Drain sets deadlines, which needs a non-blocking descriptor.
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		source := os.NewFile(uintptr(fd), name)
		all.Go(func() { failed[i] = log.Stream(name).Drain(source) })
	}
	if err := unix.Close(5); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	all.Wait()
	return errors.Join(append(failed, log.Close())...)
}
