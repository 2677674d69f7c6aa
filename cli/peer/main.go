// Command peer is Shoal: run `peer join` on every host.
package main

import (
	"context"
	"fmt"
	"os"

	"shoal/cli"
)

func main() {
	if err := cli.Run(context.Background(), os.Args[1:], parts()); err != nil {
		fmt.Fprintln(os.Stderr, "peer: "+err.Error())
		os.Exit(1)
	}
}
