package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"shoal/sim"
	"shoal/sim/model"
)

// simCommand is `peer sim`: whole clusters under failure, simulated from a seed. It needs no peer and no root.
type simCommand struct {
	Run    simRunCommand    `cmd:"" help:"Simulate a scenario: what fails, who notices when, what is led and placed anew, and whether all promises hold."`
	List   simListCommand   `cmd:"" help:"List the built-in scenarios."`
	Soak   simSoakCommand   `cmd:"" help:"Simulate seed after seed for hours; what fails is made short and saved."`
	Show   simShowCommand   `cmd:"" help:"Print a scenario, to read it or to write one's own from it."`
	Faults simFaultsCommand `cmd:"" help:"List everything that can happen to a cluster, and how a scenario says so."`
}

type simListCommand struct{}

// Run prints a line for each built-in scenario.
func (simListCommand) Run(std streams) error {
	table := tabwriter.NewWriter(std.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tNODES\tTIME\tWHAT HAPPENS")
	for _, name := range sim.Builtin() {
		s, err := sim.Open(name)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(s.Title, ". ")
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", name, s.Config.Nodes, s.Config.Length, strings.TrimSuffix(first, "."))
	}
	return table.Flush()
}

type simShowCommand struct {
	Scenario string `arg:"" help:"A name of 'peer sim list'."`
}

// Run prints the text of a scenario.
func (c *simShowCommand) Run(std streams) error {
	text, err := sim.Source(c.Scenario)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(std.out, text)
	return err
}

type simFaultsCommand struct{}

// Run prints a line for each kind of fault.
func (simFaultsCommand) Run(std streams) error {
	table := tabwriter.NewWriter(std.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(table, "AT 20s …\tENDED BY\tWHAT HAPPENS")
	for _, form := range model.FaultForms {
		fmt.Fprintf(table, "%s\t%s\t%s\n", sim.FaultLine(form), form.Ends, form.Meaning)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(std.out, "\nTARGET is n5, several like n1,n2, zone b, shard 2 (its voters), leader 2 (leader 0: of the meta shard), all, or quorum (as few drawn machines as can go on alone).")
	return err
}
