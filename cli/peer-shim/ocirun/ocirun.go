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

// Known reports whether name is one of the commands.
func Known(name string) bool { return commands[name] != nil }

// Main runs one command line (without the program's name). Errors are also
// written to the file of --log, which is where the shim reads them.
func Main(args []string, stdin io.Reader, stdout io.Writer) error {
	r := &runtime{stdin: stdin, stdout: stdout}
	flags := newFlags("peer-shim")
	flags.StringVar(&r.root, "root", defaultRoot, "directory of the containers' state")
	flags.BoolVar(&r.systemdCgroup, "systemd-cgroup", false, "manage cgroups through systemd")
	logFile := flags.String("log", "", "file for log messages (default stderr)")
	logFormat := flags.String("log-format", "text", "text or json")
	debug := flags.Bool("debug", false, "log debug messages")
	version := flags.Bool("version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *version {
		_, err := fmt.Fprintf(stdout, "runc version %s\nspec: %s\n", Version, specs.Version)
		return err
	}
	if err := openLog(*logFile, *logFormat, *debug); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("no command given")
	}
	run, ok := commands[flags.Arg(0)]
	if !ok {
		return fmt.Errorf("unknown command %q", flags.Arg(0))
	}
	var err error
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	if err = run(r, flags.Args()[1:]); err != nil {
		var exit *ExitError
		if *logFile != "" && !errors.As(err, &exit) {
			logrus.Error(err)
		}
	}
	return err
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
