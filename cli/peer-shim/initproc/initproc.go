//go:build linux

// Package initproc turns the process into a container's init when libcontainer
// re-executes this binary as "<binary> init".
//
// It must be imported for its side effect only, by a main that is started for
// containers. nsexec (C, in libcontainer/nsenter) has already entered the
// namespaces when this package's init runs; libcontainer.Init never returns.
package initproc

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C constructor that enters the namespaces
)

// The pipe's variable is checked too: a user who types "peer-shim init" must
// get a usage message, not a hung process.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init()
	}
}
