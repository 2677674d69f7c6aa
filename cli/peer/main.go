// Command peer is Shoal: run `peer join` on every host.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"shoal/cli"
)

func init() {
	// Goroutines that enter another network namespace end their thread instead of giving it back. Go cannot end the main thread, so
	// they must never run on it: what looks at this process from outside would see it in a namespace that is not its own.
	runtime.LockOSThread()
}

func main() {
	if err := cli.Run(context.Background(), os.Args[1:], parts()); err != nil {
		fmt.Fprintln(os.Stderr, "peer: "+err.Error())
		os.Exit(1)
	}
}
