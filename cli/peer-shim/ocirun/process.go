//go:build linux

package ocirun

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// processIO says where a process's terminal and process ID go.
type processIO struct {
	pidFile       string
	consoleSocket string
}

// launch starts one process in container through action (Start, Run) with the
// caller's stdio, or with a new terminal that is sent to the console socket.
func (o *processIO) launch(container *libcontainer.Container, spec *specs.Process, init bool,
	action func(*libcontainer.Process) error,
) (*libcontainer.Process, error) {
	process, err := newProcess(spec)
	if err != nil {
		return nil, err
	}
	process.Init = init
	switch {
	case spec.Terminal && o.consoleSocket == "":
		return nil, errors.New("a terminal needs --console-socket")
	case spec.Terminal:
		conn, err := net.Dial("unix", o.consoleSocket)
		if err != nil {
			return nil, fmt.Errorf("console socket: %w", err)
		}
		defer conn.Close()
		if process.ConsoleSocket, err = conn.(*net.UnixConn).File(); err != nil {
			return nil, fmt.Errorf("console socket: %w", err)
		}
		defer process.ConsoleSocket.Close()
	default:
		process.Stdin, process.Stdout, process.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	if err := action(process); err != nil {
		return nil, err
	}
	if o.pidFile == "" {
		return process, nil
	}
	if err := writePid(o.pidFile, process); err != nil {
		// Whoever asked for the file cannot find the process without it.
		_ = process.Signal(unix.SIGKILL)
		_, _ = process.Wait()
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return process, nil
}

// writePid writes the process ID so that a reader sees all of it or nothing.
func writePid(path string, process *libcontainer.Process) error {
	pid, err := process.Pid()
	if err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(temporary, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("process is missing")
	case len(p.Args) == 0:
		return errors.New("process.args is empty")
	case !filepath.IsAbs(p.Cwd):
		return fmt.Errorf("process.cwd %q is not absolute", p.Cwd)
	}
	return nil
}

// newProcess translates an OCI process into libcontainer's.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	process := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        strconv.Itoa(int(logrus.GetLevel())),
	}
	for _, gid := range p.User.AdditionalGids {
		process.AdditionalGroups = append(process.AdditionalGroups, int(gid))
	}
	if size := p.ConsoleSize; size != nil {
		process.ConsoleWidth, process.ConsoleHeight = uint16(size.Width), uint16(size.Height)
	}
	if caps := p.Capabilities; caps != nil {
		process.Capabilities = &configs.Capabilities{
			Bounding:    caps.Bounding,
			Effective:   caps.Effective,
			Inheritable: caps.Inheritable,
			Permitted:   caps.Permitted,
			Ambient:     caps.Ambient,
		}
	}
	for _, limit := range p.Rlimits {
		kind, ok := rlimits[limit.Type]
		if !ok {
			return nil, fmt.Errorf("unknown rlimit %q", limit.Type)
		}
		process.Rlimits = append(process.Rlimits, configs.Rlimit{Type: kind, Hard: limit.Hard, Soft: limit.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, err
	}
	process.CPUAffinity = affinity
	return process, nil
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// execute runs a further process, described by a file in OCI form, inside a
// running container.
func execute(r *runtime, args []string) error {
	var io processIO
	flags := newFlags("exec")
	path := flags.String("process", "", "file with the OCI process")
	flags.StringVar(&io.pidFile, "pid-file", "", "file to write the process ID to")
	flags.StringVar(&io.consoleSocket, "console-socket", "", "socket that receives the terminal")
	detach := flags.Bool("detach", false, "do not wait for the process")
	if err := flags.Parse(args); err != nil {
		return err
	}
	container, err := r.load(flags.Args())
	if err != nil {
		return err
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	if status != libcontainer.Running && status != libcontainer.Created {
		return fmt.Errorf("cannot exec in a container in the %s state", status)
	}
	data, err := os.ReadFile(*path)
	if err != nil {
		return fmt.Errorf("process file: %w", err)
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(data, spec); err != nil {
		return fmt.Errorf("process file: %w", err)
	}
	if err := checkProcess(spec); err != nil {
		return err
	}
	process, err := io.launch(container, spec, false, container.Run)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if *detach {
		return nil
	}
	return waitForwarding(process)
}
