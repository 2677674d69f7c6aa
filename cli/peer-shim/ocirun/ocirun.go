//go:build linux

// Package ocirun is a command line compatible with the part of runc's that the
// containerd shim and Shoal use (create, start, run, kill, delete, exec, state,
// ps, pause, resume, update, features), over libcontainer.
//
// Source of the command line: https://github.com/opencontainers/runc/tree/main/man
package ocirun

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	_ "github.com/opencontainers/cgroups/devices" // registers the device controllers with the cgroup managers
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

// defaultRoot is where state lives when --root is not given (runc's default).
const defaultRoot = "/run/runc"

// ExitError carries a process's exit status to main without a message.
type ExitError struct{ Status int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }

// runtime holds the global options of one invocation.
type runtime struct {
	root          string
	systemdCgroup bool
	stdin         io.Reader
	stdout        io.Writer
}

type command func(r *runtime, args []string) error

var commands = map[string]command{
	"create":   create,
	"start":    start,
	"run":      run,
	"kill":     kill,
	"delete":   remove,
	"exec":     execute,
	"state":    state,
	"ps":       processes,
	"pause":    pause,
	"resume":   resume,
	"update":   update,
	"features": printFeatures,
}

// global holds the options before the command.
type global struct {
	runtime
	logFile, logFormat string
	debug, version     bool
	command            string
	args               []string
}

func parseGlobal(args []string, stdin io.Reader, stdout io.Writer) (global, error) {
	g := global{runtime: runtime{stdin: stdin, stdout: stdout}}
	flags := newFlags("peer-shim")
	flags.StringVar(&g.root, "root", defaultRoot, "directory of the containers' state")
	flags.BoolVar(&g.systemdCgroup, "systemd-cgroup", false, "manage cgroups through systemd")
	flags.StringVar(&g.logFile, "log", "", "file for log messages (default stderr)")
	flags.StringVar(&g.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&g.debug, "debug", false, "log debug messages")
	flags.BoolVar(&g.version, "version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return g, err
	}
	if flags.NArg() > 0 {
		g.command, g.args = flags.Arg(0), flags.Args()[1:]
	}
	var err error
	g.root, err = filepath.Abs(g.root)
	return g, err
}

// Main runs one command line (without the program's name). Errors are also
// written to the file of --log, which is where the shim reads them.
func Main(args []string, stdin io.Reader, stdout io.Writer) error {
	g, err := parseGlobal(args, stdin, stdout)
	if err != nil {
		return err
	}
	if g.version {
		_, err := fmt.Fprintf(stdout, "runc version %s\nspec: %s\n", Version, specs.Version)
		return err
	}
	if err := openLog(g.logFile, g.logFormat, g.debug); err != nil {
		return err
	}
	run, ok := commands[g.command]
	switch {
	case g.command == "":
		return errors.New("no command given")
	case !ok:
		return fmt.Errorf("unknown command %q", g.command)
	}
	if err = run(&g.runtime, g.args); err != nil {
		var exit *ExitError
		if g.logFile != "" && !errors.As(err, &exit) {
			logrus.Error(err)
		}
	}
	return err
}

// inline are the commands that start no process. Inside the shim they need none
// of their own either, which saves an exec, some milliseconds, for each.
var inline = map[string]bool{
	"start": true, "kill": true, "delete": true, "state": true, "ps": true, "pause": true, "resume": true, "update": true,
}

// Inline runs a command line within this process if it can; ok is false when it
// must be executed. It leaves the process's own log alone, and writes an error
// to the file of --log as Main does.
func Inline(args []string, stdin io.Reader, stdout io.Writer) (ok bool, err error) {
	g, err := parseGlobal(args, stdin, stdout)
	if err != nil || !inline[g.command] {
		return false, nil
	}
	err = commands[g.command](&g.runtime, g.args)
	if err == nil || g.logFile == "" {
		return true, err
	}
	file, openErr := os.OpenFile(g.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if openErr != nil {
		return true, errors.Join(err, openErr)
	}
	defer file.Close()
	logger := logrus.New()
	logger.SetOutput(file)
	logger.SetFormatter(new(logrus.JSONFormatter))
	logger.Error(err)
	return true, err
}

// newFlags returns a flag set that reports errors instead of exiting.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	return flags
}

func openLog(path, format string, debug bool) error {
	if debug {
		logrus.SetLevel(logrus.DebugLevel)
	}
	switch format {
	case "text":
	case "json":
		logrus.SetFormatter(new(logrus.JSONFormatter))
	default:
		return fmt.Errorf("unknown log format %q (text or json)", format)
	}
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	logrus.SetOutput(file)
	return nil
}

// load finds the one container named by args.
func (r *runtime) load(args []string) (*libcontainer.Container, error) {
	if len(args) < 1 || args[0] == "" {
		return nil, errors.New("container ID missing")
	}
	return libcontainer.Load(r.root, args[0])
}
