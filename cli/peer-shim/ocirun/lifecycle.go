//go:build linux

package ocirun

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bundleOptions are the options that create and run share.
type bundleOptions struct {
	processIO
	bundle       string
	noPivot      bool
	noNewKeyring bool
	detach       bool
}

func parseBundle(name string, args []string) (bundleOptions, string, error) {
	var o bundleOptions
	flags := newFlags(name)
	flags.StringVar(&o.bundle, "bundle", ".", "directory that holds config.json")
	flags.StringVar(&o.pidFile, "pid-file", "", "file to write the process ID to")
	flags.StringVar(&o.consoleSocket, "console-socket", "", "socket that receives the terminal")
	flags.BoolVar(&o.noPivot, "no-pivot", false, "do not pivot_root")
	flags.BoolVar(&o.noNewKeyring, "no-new-keyring", false, "keep the session keyring")
	flags.BoolVar(&o.detach, "detach", false, "do not wait for the process")
	if err := flags.Parse(args); err != nil {
		return o, "", err
	}
	if flags.NArg() != 1 {
		return o, "", fmt.Errorf("%s needs one container ID, got %d", name, flags.NArg())
	}
	// libcontainer resolves relative paths of the spec against the bundle, the
	// caller's own paths are relative to where it stands.
	for _, path := range []*string{&o.pidFile, &o.consoleSocket} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return o, "", err
		}
		*path = abs
	}
	return o, flags.Arg(0), nil
}

// create makes a container whose init waits for start.
func create(r *runtime, args []string) error {
	options, id, err := parseBundle("create", args)
	if err != nil {
		return err
	}
	options.detach = true
	container, spec, err := r.newContainer(id, options)
	if err != nil {
		return err
	}
	if _, err = options.launch(container, spec.Process, true, container.Start); err != nil {
		return errors.Join(fmt.Errorf("create: %w", err), container.Destroy())
	}
	return nil
}

// run creates and starts a container and, unless detached, waits for its end,
// removes it and returns its exit status.
func run(r *runtime, args []string) error {
	options, id, err := parseBundle("run", args)
	if err != nil {
		return err
	}
	container, spec, err := r.newContainer(id, options)
	if err != nil {
		return err
	}
	process, err := options.launch(container, spec.Process, true, container.Run)
	if err != nil {
		return errors.Join(fmt.Errorf("run: %w", err), container.Destroy())
	}
	if options.detach {
		return nil
	}
	status := waitForwarding(process)
	if err := container.Destroy(); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	return status
}

// waitForwarding waits for process and passes on the signals meant for it.
func waitForwarding(process *libcontainer.Process) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				// The process may just have ended; Wait reports that.
				_ = process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	final, err := process.Wait()
	if final == nil {
		return fmt.Errorf("wait: %w", err)
	}
	status := final.ExitCode()
	if sys, ok := final.Sys().(interface {
		Signaled() bool
		Signal() unix.Signal
	}); ok && sys.Signaled() {
		status = 128 + int(sys.Signal())
	}
	if status != 0 {
		return &ExitError{Status: status}
	}
	return nil
}

// newContainer reads the bundle's config.json and registers the container.
func (r *runtime) newContainer(id string, o bundleOptions) (*libcontainer.Container, *specs.Spec, error) {
	if err := os.Chdir(o.bundle); err != nil {
		return nil, nil, fmt.Errorf("bundle: %w", err)
	}
	data, err := os.ReadFile("config.json")
	if err != nil {
		return nil, nil, fmt.Errorf("bundle: %w", err)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	if err := checkProcess(spec.Process); err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: r.systemdCgroup,
		NoPivotRoot:      o.noPivot,
		NoNewKeyring:     o.noNewKeyring,
		Spec:             spec,
	})
	if err != nil {
		return nil, nil, err
	}
	container, err := libcontainer.Create(r.root, id, config)
	return container, spec, err
}

// start lets a created container's init execute the user's program.
func start(r *runtime, args []string) error {
	container, err := r.load(args)
	if err != nil {
		return err
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	if status != libcontainer.Created {
		return fmt.Errorf("cannot start a container in the %s state", status)
	}
	return container.Exec()
}

// kill sends a signal (name or number, default SIGTERM) to a container's init.
// --all, which runc keeps for compatibility, makes a dead init no error.
func kill(r *runtime, args []string) error {
	flags := newFlags("kill")
	all := flags.Bool("all", false, "accept that init is gone")
	if err := flags.Parse(args); err != nil {
		return err
	}
	container, err := r.load(flags.Args())
	if err != nil {
		return err
	}
	sig, err := parseSignal(flags.Arg(1))
	if err != nil {
		return err
	}
	err = container.Signal(sig)
	if *all && errors.Is(err, libcontainer.ErrNotRunning) {
		return nil
	}
	return err
}

func parseSignal(name string) (unix.Signal, error) {
	if name == "" {
		return unix.SIGTERM, nil
	}
	if number, err := strconv.Atoi(name); err == nil {
		return unix.Signal(number), nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if sig := unix.SignalNum(full); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", name)
}

// remove deletes a stopped or created container; --force kills it first.
func remove(r *runtime, args []string) error {
	flags := newFlags("delete")
	force := flags.Bool("force", false, "kill a running container")
	if err := flags.Parse(args); err != nil {
		return err
	}
	container, err := r.load(flags.Args())
	if errors.Is(err, libcontainer.ErrNotExist) {
		// A create that died early leaves a directory without state.json.
		if removed := os.RemoveAll(filepath.Join(r.root, filepath.Base(flags.Arg(0)))); removed != nil {
			return removed
		}
		if *force {
			return nil
		}
	}
	if err != nil {
		return err
	}
	if *force {
		return killAndDestroy(container)
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	switch status {
	case libcontainer.Stopped:
		return container.Destroy()
	case libcontainer.Created:
		return killAndDestroy(container)
	default:
		return fmt.Errorf("cannot delete a container in the %s state", status)
	}
}

// killAndDestroy waits up to ten seconds for the processes to go.
func killAndDestroy(container *libcontainer.Container) error {
	// Errors mean that nothing runs any more, which the loop finds out.
	_ = container.Signal(unix.SIGKILL)
	for wait := time.Millisecond; wait < 10*time.Second; wait *= 2 {
		if container.Signal(unix.Signal(0)) != nil {
			return container.Destroy()
		}
		time.Sleep(wait)
	}
	return errors.New("container init still runs after SIGKILL")
}
