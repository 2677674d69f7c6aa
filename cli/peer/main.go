// Command peer is Shoal: run `peer join` on every host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"shoal/cli"
	"shoal/peer"
)

func init() {
	// Goroutines that enter another network namespace end their thread instead of giving it back. Go cannot end the main thread, so
	// they must never run on it: what looks at this process from outside would see it in a namespace that is not its own.
	runtime.LockOSThread()
}

func main() {
	err := cli.Run(context.Background(), os.Args[1:], parts())
	if errors.Is(err, peer.ErrRestart) {
		err = again()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer: "+err.Error())
		os.Exit(1)
	}
}

// again makes this process a new one of the same program, with the same arguments. It keeps its ID, so whoever looks after it, systemd
// for instance, notices nothing; and its children, of which containerd is one, stay.
func again() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("start %s again: %w", program, syscall.Exec(program, os.Args, os.Environ()))
}
