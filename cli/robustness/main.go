// Command robustness hurts a cluster of real processes while clients use it, records what they do and see, and judges it.
//
//	go run ./cli/robustness run --for 10m --seed 7
//	go run ./cli/robustness check robustness-7-1/history.jsonl
//
// Peers run in network namespaces of this machine (cli/lab), with disks of their own. Clients read at every consistency, create,
// update, delete and watch, through all peers, in several namespaces and so shards. Faults are drawn from a seed. At the end everything
// is healed, the cluster must converge, and the checkers of sim/history judge the recording. A run in which clients did too little is
// invalid. A failure leaves the history, its pictures and the peers' logs behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"shoal/sim/clients"
	"shoal/sim/history"
)

type grammar struct {
	Run    runCommand    `cmd:"" default:"withargs" help:"Hurt a cluster and judge what clients saw (root)."`
	Check  checkCommand  `cmd:"" help:"Judge a recorded history again, and draw it."`
	Faults faultsCommand `cmd:"" help:"List the faults."`
}

type runCommand struct {
	For        time.Duration `help:"How long to go on." default:"3m"`
	Epoch      time.Duration `help:"How long faults happen before everything is healed and judged." default:"90s"`
	Seed       int64         `help:"Of everything that is drawn. Default: one of its own, which is printed."`
	Peers      int           `help:"How many peers." default:"3"`
	Clients    int           `help:"How many clients." default:"12"`
	Namespaces int           `help:"In how many namespaces." default:"6"`
	Objects    int           `help:"Over how many objects per namespace and kind." default:"5"`
	Rate       float64       `help:"Operations a second that all clients together aim at." default:"300"`
	MinRate    float64       `help:"Operations a second without which the run is invalid." default:"50"`
	MinShare   float64       `help:"Share of operations that must be answered while a minority of the peers is hurt." default:"0.5"`
	Faults     []string      `help:"Which faults; see \"robustness faults\". Default: all."`
	Binary     string        `help:"The peer's executable." default:"bin/peer"`
	Out        string        `help:"Folder for what a failure leaves behind." default:"."`
}

// Run runs.
func (c *runCommand) Run(ctx context.Context, out io.Writer) error {
	binary, err := filepath.Abs(c.Binary)
	if err != nil {
		return err
	}
	if c.Seed == 0 {
		c.Seed = rand.Int64N(1_000_000)
	}
	if len(c.Faults) == 0 {
		c.Faults = faultNames()
	}
	return run(ctx, Config{
		For: c.For, Epoch: c.Epoch, Seed: c.Seed, Peers: c.Peers, Clients: c.Clients, Namespaces: c.Namespaces, Objects: c.Objects,
		Rate: c.Rate, MinRate: c.MinRate, MinAnswered: c.MinShare, Faults: c.Faults, Binary: binary, Out: c.Out,
	}, out)
}

type checkCommand struct {
	File string `arg:"" help:"A history file."`
}

// Run judges a file.
func (c *checkCommand) Run(out io.Writer) error {
	file, err := os.Open(c.File)
	if err != nil {
		return err
	}
	defer file.Close()
	h, err := history.Read(file)
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	violations := history.Check(h, history.Options{})
	fmt.Fprintln(out, clients.Measure(h))
	for _, v := range violations {
		fmt.Fprintln(out, v)
	}
	if err := drawAll(filepath.Dir(c.File), h, violations); err != nil {
		return err
	}
	if len(violations) > 0 {
		return errFailed
	}
	return nil
}

type faultsCommand struct{}

// Run lists the faults.
func (faultsCommand) Run(out io.Writer) error {
	for _, name := range faultNames() {
		fmt.Fprintf(out, "%-12s %s\n", name, faultKinds[name].help)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := execute(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "robustness: "+err.Error())
		os.Exit(1)
	}
}

// execute runs one command line.
func execute(ctx context.Context, args []string, out io.Writer) error {
	parser, err := kong.New(&grammar{}, kong.Name("robustness"), kong.Writers(out, out), kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(out, (*io.Writer)(nil)))
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if err != nil {
		return err
	}
	if err := command.Run(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
