//go:build linux

// Command peer-containerd is the containerd that a peer runs as its child. It
// is apart from the peer for its memory and start time, and apart from
// peer-shim because that is executed several times per container.
//
//	CGO_ENABLED=0 go build -tags "no_systemd osusergo netgo" -ldflags "-s -w" ./cli/peer-containerd
package main

import (
	"fmt"
	"os"

	"shoal/runtime/containerd/daemon"
)

func main() {
	if err := daemon.Main(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer-containerd:", err)
		os.Exit(1)
	}
}
