// Package cli is the command `peer`: our own verbs through kong, one file
// each, and kubectl's verbs carried along behind it. It knows no part of the
// peer itself; the main package hands those in as Parts.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"shoal/peer/identity"
)

// Parts are what the commands drive.
type Parts struct {
	// Join runs a peer until ctx ends.
	Join func(ctx context.Context, flags Join) error
	// Restore begins a cluster anew from a backup.
	Restore func(ctx context.Context, flags Restore, file io.ReadSeeker) error
}

// streams are the process's own; tests put others in their place.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// grammar is the command line of `peer`.
type grammar struct {
	DataDir string `help:"The peer's data folder." default:"${data_dir}" env:"SHOAL_DATA_DIR" placeholder:"FOLDER"`

	Join       Join              `cmd:"" help:"Run a peer on this host: found a cluster, join one, or resume, whichever applies."`
	Leave      leaveCommand      `cmd:"" help:"Take this host's peer out of its cluster."`
	Status     statusCommand     `cmd:"" help:"Show the peers, shards, leaders and health that this host's peer sees."`
	Explain    explainCommand    `cmd:"" name:"explain-placement" help:"Tell where a pod goes and why, and why not elsewhere."`
	Set        setCommand        `cmd:"" help:"Show or change settings of the whole cluster: voters, replace-after, data-shards."`
	Recover    recoverCommand    `cmd:"" help:"Show shards that lost their majority, and bring them back from copies on this host."`
	Backup     backupCommand     `cmd:"" help:"Save the whole cluster, at one moment, to a file."`
	Restore    Restore           `cmd:"" help:"Begin a cluster anew from a backup, in this host's empty data folder."`
	Token      tokenCommand      `cmd:"" help:"Make, list and delete join tokens."`
	Kubeconfig kubeconfigCommand `cmd:"" help:"Print an administrator's kubeconfig that lists all known peers."`
	Image      imageCommand      `cmd:"" help:"Import and list images on this host."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
	Sim        simCommand        `cmd:"" help:"Simulate whole clusters under failure, from a seed: what if."`
	Lab        labCommand        `cmd:"" help:"Run a whole cluster on this machine, in namespaces, and show it."`
	Bench      benchCommand      `cmd:"" help:"Take the project's figures on labs of this machine, each beside a reference measured in the same run."`
}

// Run carries out one command line, without the program's name. Its error is
// one sentence for the user.
func Run(ctx context.Context, args []string, parts Parts) error {
	return run(ctx, args, parts, streams{os.Stdin, os.Stdout, os.Stderr})
}

func run(ctx context.Context, args []string, parts Parts, std streams) error {
	if len(args) == 0 {
		args = []string{"--help"}
	}
	var root grammar
	exited := false
	parser, err := newParser(&root, std, func(int) { exited = true })
	if err != nil {
		return fmt.Errorf("the command line's own grammar: %w", err)
	}
	command, err := parser.Parse(verbFirst(args))
	if exited { // --help was asked for and printed
		return nil
	}
	if err != nil {
		return usageError(err)
	}
	if command.Model == nil || command.Selected() == nil || command.Selected().Passthrough && isKubectl(command.Selected().Name) {
		// kubectl's verbs handle interrupts themselves, or rely on the default.
		return command.Run(ctx, &root, std)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run(&root, parts, std)
}

func newParser(root *grammar, std streams, exit func(int)) (*kong.Kong, error) {
	options := []kong.Option{
		kong.Name("peer"),
		kong.Description("A container orchestrator without masters. Run `peer join` on every host; everything else is Kubernetes."),
		kong.Vars{"data_dir": identity.DefaultDataDir},
		kong.Writers(std.out, std.err),
		kong.Exit(exit),
		kong.ShortUsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	}
	for _, verb := range kubectlVerbs {
		tags := []string{`cmd:""`, `passthrough:""`}
		if verb.hidden {
			tags = append(tags, `hidden:""`)
		}
		options = append(options, kong.DynamicCommand(verb.name, verb.help, kubectlGroup, &kubectlCommand{verb: verb.name}, tags...))
	}
	return kong.New(root, options...)
}

// usageError points to the help of the command that was not understood.
func usageError(err error) error {
	var parse *kong.ParseError
	if !errors.As(err, &parse) {
		return err
	}
	name := "peer"
	if parse.Context != nil && parse.Context.Selected() != nil {
		name += " " + parse.Context.Selected().Path()
		name = strings.Replace(name, "peer peer", "peer", 1)
	}
	return fmt.Errorf("%w (see `%s --help`)", err, name)
}

// verbFirst lets kubectl's flags stand before the verb, as in
// `peer -n kube-system get pods`: kong would not know them there.
func verbFirst(args []string) []string {
	if !strings.HasPrefix(args[0], "-") || slices.Contains([]string{"-h", "--help"}, args[0]) || strings.HasPrefix(args[0], "--data-dir") {
		return args
	}
	for i, arg := range args {
		if isKubectl(arg) {
			return slices.Concat([]string{arg}, args[:i], args[i+1:])
		}
	}
	return args
}
