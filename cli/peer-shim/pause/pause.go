//go:build linux

// Package pause is the process that is number 1 in a pod's shared pid
// namespace: it waits, reaps the orphans that the kernel gives it, and ends on
// SIGTERM.
package pause

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Run returns when the pod is to end.
func Run() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range signals {
		if s != unix.SIGCHLD {
			return
		}
		for {
			// One signal may stand for several ended children.
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
