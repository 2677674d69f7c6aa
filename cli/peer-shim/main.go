//go:build linux

// Command peer-shim is the small binary that stands between containerd and a
// container: the io.containerd.runc.v2 shim and a runc-compatible runtime in
// one static file. It is apart from the peer because it is executed several
// times for every container, and each time pays for every package linked in.
//
// Build (cgo, gcc, libseccomp-dev):
//
//	go build -tags "seccomp static_build no_systemd osusergo netgo" \
//	  -ldflags "-s -w -linkmode external -extldflags -static" ./cli/peer-shim
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	_ "shoal/cli/peer-shim/initproc" // must see "init" before anything else runs
	"shoal/cli/peer-shim/logger"
	"shoal/cli/peer-shim/ocirun"
	"shoal/cli/peer-shim/pause"
	"shoal/cli/peer-shim/taskshim"
	"shoal/runtime/containerd/crilog"
)

// run is everything but the shim.
func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "pause":
		pause.Run()
		return nil
	case len(args) == 2 && args[0] == crilog.Scheme:
		return logger.Run(args[1])
	default:
		return ocirun.Main(args, os.Stdin, os.Stdout)
	}
}

// shimFlags are what containerd puts first when it calls a shim.
var shimFlags = []string{"-namespace", "-id", "-info", "-v"}

func main() {
	if len(os.Args) > 1 && slices.Contains(shimFlags, os.Args[1]) {
		taskshim.Main()
		return
	}
	err := run(os.Args[1:])
	var exit *ocirun.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exit.Status)
	default:
		fmt.Fprintln(os.Stderr, "peer-shim:", err)
		os.Exit(1)
	}
}
