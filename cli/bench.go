package cli

import (
	"context"

	"shoal/cli/bench"
)

// benchCommand is `peer bench`.
type benchCommand struct {
	Only   []string `help:"Take only these figures: consensus, failover, shards, scheduling, binding, leader, start, pod, service, deployment, idle, service3, creates, watches, crowd, loss." placeholder:"NAME"`
	Quick  bool     `help:"Measure fewer times: to see that it works, not what it gives."`
	JSON   string   `name:"json" help:"Also write the figures to this file." placeholder:"FILE"`
	Folder string   `help:"Folder for the data of peers and references: its disk is what is measured. Default: the system's temporary folder."`
}

// Run takes the figures and prints them.
func (c *benchCommand) Run(ctx context.Context, std streams) error {
	return bench.Run(ctx, bench.Config{Only: c.Only, Quick: c.Quick, JSON: c.JSON, Dir: c.Folder}, std.out)
}
