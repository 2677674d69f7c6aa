package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
)

// setCommand shows and changes settings of the whole cluster.
type setCommand struct {
	Name  string `arg:"" optional:"" help:"Which: voters, replace-after or data-shards. None: show them."`
	Value string `arg:"" optional:"" help:"The new value."`
}

// Run changes one setting, or prints all.
func (s *setCommand) Run(ctx context.Context, root *grammar, std streams) error {
	switch {
	case s.Name != "" && s.Value == "":
		return fmt.Errorf("no value for %s: peer set %s VALUE, or peer set to see all", s.Name, s.Name)
	case s.Name != "":
		return root.local().Set(ctx, s.Name, s.Value, func(line string) { fmt.Fprintln(std.out, line) })
	}
	settings, err := root.local().Settings(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(std.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "SETTING\tVALUE\tMEANING")
	for _, setting := range settings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", setting.Name, setting.Value, setting.Help)
	}
	return table.Flush()
}
