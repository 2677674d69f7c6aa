package cli

import (
	"context"

	"shoal/cli/lab"
)

// labCommand is `peer lab`.
type labCommand struct {
	Peers      int    `help:"How many peers." default:"3" placeholder:"N"`
	Once       bool   `help:"Take everything down after the demo instead of waiting for Ctrl-C; the exit status tells whether all went well."`
	WebAddress string `help:"Where the host reaches the demo's Service." default:"127.0.0.1:8080" placeholder:"IP:PORT"`
	Folder     string `help:"Folder for the peers' data. Default: the system's temporary folder."`
}

// Run opens a lab and shows the demo on it.
func (c *labCommand) Run(ctx context.Context, std streams) error {
	return lab.Run(ctx, lab.Options{Peers: c.Peers, Once: c.Once, WebAddress: c.WebAddress, Dir: c.Folder}, std.out)
}
