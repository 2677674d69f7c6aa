//go:build linux

package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shoal/runtime/containerd/fence"
)

// maxStateDir bounds the length of a state folder, in characters: a Unix
// socket's path has 108 bytes and the shims' sockets are 64 hex digits below "s/".
const maxStateDir = 38

const (
	startTimeout = 15 * time.Second // for the daemon to answer
	stopTimeout  = 10 * time.Second // for it to end on SIGTERM
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	steadyAfter  = 30 * time.Second // a daemon that ran this long starts anew without back-off
)

// StateDir returns the folder for what a peer with this data folder loses at a
// reboot: short, because sockets lie in it, and the same every time.
func StateDir(dataDir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
	return filepath.Join("/run/shoal", hex.EncodeToString(sum[:6]))
}

// DaemonConfig says how to run the embedded containerd.
type DaemonConfig struct {
	Program  string // absolute path of peer-containerd; see shimbin.Find
	Root     string // absolute folder of images and snapshots, kept over reboots
	StateDir string // the peer's state folder, see StateDir
	LogLevel string // default "warn"
	// FenceAfter is the age of the peer's last renewal at which the daemon kills
	// what must not run twice; default fence.KillAfter.
	FenceAfter time.Duration
	Logger     *slog.Logger
}

// Daemon is a running containerd of our own, restarted when it dies.
type Daemon struct {
	config DaemonConfig
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	pid int // 0 while none runs
}

// StartDaemon returns when containerd answers on its socket. A daemon that runs
// already on the same folders, left by a peer that was killed or that left it,
// is adopted. It is started again, with growing pauses, whenever it dies, until
// ctx ends or Close is called; containers notice neither.
func StartDaemon(ctx context.Context, config DaemonConfig) (*Daemon, error) {
	for name, path := range map[string]string{"Program": config.Program, "Root": config.Root, "StateDir": config.StateDir} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("containerd: %s must be an absolute path, got %q", name, path)
		}
	}
	if len(config.StateDir) > maxStateDir {
		return nil, fmt.Errorf("containerd: state folder %q is longer than %d characters: sockets in it could not be opened", config.StateDir, maxStateDir)
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.LogLevel == "" {
		config.LogLevel = "warn"
	}
	if config.FenceAfter == 0 {
		config.FenceAfter = fence.KillAfter
	}
	for _, folder := range []string{config.Root, config.StateDir} {
		if err := os.MkdirAll(folder, 0o711); err != nil {
			return nil, fmt.Errorf("containerd: %w", diskError(err))
		}
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d := &Daemon{config: config, cancel: cancel, done: make(chan struct{})}
	process, err := d.ensure(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	go d.supervise(run, process)
	return d, nil
}

// Socket is where the daemon listens.
func (d *Daemon) Socket() string { return filepath.Join(d.config.StateDir, "containerd.sock") }

// PID of the daemon, 0 while it is being started again.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pid
}

// Close ends the supervision. With stop the daemon is ended too; without, it
// keeps running and the next StartDaemon adopts it. Containers run on either way.
func (d *Daemon) Close(stop bool) error {
	d.cancel()
	<-d.done
	pid := d.PID()
	if !stop || pid == 0 {
		return nil
	}
	return endProcess(pid, stopTimeout)
}

// process is a daemon that is ours by birth or by adoption.
type process struct {
	pid  int
	gone <-chan struct{} // closed at its end
}

// ensure adopts the daemon of these folders or starts one.
func (d *Daemon) ensure(ctx context.Context) (process, error) {
	p, found := d.adopt()
	if !found {
		var err error
		if p, err = d.start(); err != nil {
			return p, err
		}
	}
	if err := d.waitAnswer(ctx, p); err != nil {
		return p, err
	}
	d.setPID(p.pid)
	return p, nil
}

func (d *Daemon) setPID(pid int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pid = pid
}

func (d *Daemon) arguments() []string {
	return []string{
		d.config.Program, "--root", d.config.Root, "--state", filepath.Join(d.config.StateDir, "c"),
		"--address", d.Socket(), "--shim-sockets", filepath.Join(d.config.StateDir, "s"),
		"--log-level", d.config.LogLevel, "--fence", d.config.StateDir, "--fence-after", d.config.FenceAfter.String(),
	}
}

func (d *Daemon) pidFile() string { return filepath.Join(d.config.StateDir, "containerd.pid") }

// adopt finds a daemon that an earlier peer started. The process ID alone
// proves nothing, since the kernel uses it again: its command line must name our socket.
func (d *Daemon) adopt() (process, bool) {
	data, err := os.ReadFile(d.pidFile())
	if err != nil {
		return process{}, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil {
		return process{}, false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{}, false
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(command, []byte("\x00"+d.Socket()+"\x00")) {
		unix.Close(fd)
		return process{}, false
	}
	d.config.Logger.Info("containerd adopted", "pid", pid)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer unix.Close(fd)
		waitPidfd(fd)
	}()
	return process{pid: pid, gone: gone}, true
}

// waitPidfd blocks until the process behind fd has ended.
func waitPidfd(fd int) {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// start runs the program in a session of its own, so that a Ctrl-C meant for
// the peer does not reach it. Its log goes to a file because a pipe would break
// with the peer.
func (d *Daemon) start() (process, error) {
	logFile, err := os.OpenFile(filepath.Join(d.config.StateDir, "containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return process{}, fmt.Errorf("containerd: %w", diskError(err))
	}
	defer logFile.Close()
	arguments := d.arguments()
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stdout, command.Stderr = logFile, logFile
	command.Dir = d.config.StateDir
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return process{}, fmt.Errorf("containerd: %w", err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = command.Wait() // the supervisor reports the end
	}()
	p := process{pid: command.Process.Pid, gone: gone}
	if err := os.WriteFile(d.pidFile(), []byte(strconv.Itoa(p.pid)), 0o600); err != nil {
		return p, errors.Join(fmt.Errorf("containerd: %w", diskError(err)), endProcess(p.pid, stopTimeout))
	}
	return p, nil
}

// waitAnswer returns when something accepts on the socket.
func (d *Daemon) waitAnswer(ctx context.Context, p process) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		conn, err := net.Dial("unix", d.Socket())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.gone:
			return fmt.Errorf("containerd ended at start: %s", d.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer on %s: %w: %s", d.Socket(), ctx.Err(), d.lastLog())
		case <-time.After(pause):
		}
	}
}

// lastLog is the end of the daemon's log, for error messages.
func (d *Daemon) lastLog() string {
	data, err := os.ReadFile(filepath.Join(d.config.StateDir, "containerd.log"))
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimSpace(data)
	if i := bytes.LastIndexByte(data, '\n'); i >= 0 {
		data = data[i+1:]
	}
	return string(data)
}

// supervise starts the daemon again when it dies.
func (d *Daemon) supervise(ctx context.Context, p process) {
	defer close(d.done)
	backoff := firstBackoff
	for {
		since := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-p.gone:
		}
		d.setPID(0)
		if time.Since(since) > steadyAfter {
			backoff = firstBackoff
		}
		d.config.Logger.Warn("containerd died, starting it again", "pid", p.pid, "log", d.lastLog())
		for {
			var err error
			if p, err = d.ensure(ctx); err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			d.config.Logger.Error("containerd does not start", "err", err, "next try in", backoff)
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff):
			}
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// endProcess sends SIGTERM, then SIGKILL after a pause, and waits for the end.
func endProcess(pid int, grace time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, grace}} {
		if err := unix.PidfdSendSignal(fd, step.signal, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(step.wait.Milliseconds()))
		if err == nil && n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}

// diskError names a full disk in words.
func diskError(err error) error {
	if diskFull(err) {
		return fmt.Errorf("the disk is full: %w", err)
	}
	return err
}
