package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"shoal/runtime/containerd"
)

// apiPort is the peers' one port, the default of peer join.
const apiPort = "7443"

// Peer is one peer of a lab.
type Peer struct {
	Name string
	// Dir is its data folder, and Log the file with what it printed.
	Dir, Log string
	// API is where its API is reached from the host's loopback.
	API string
	// Address is its own in the underlay.
	Address string
	// Took is the time from its first start until it was ready.
	Took time.Duration

	host    *host
	binary  string
	zone    string // empty for none
	cgroup  string
	disk    string // the file that is its disk, empty for none
	forward *forwarder
	clock   *clock // nil for the machine's
	shaky   *shaky // nil for a line that is as it should be

	lock    sync.Mutex
	command *exec.Cmd     // the last that was started
	exited  chan struct{} // closed when it has ended
}

// Start runs `peer join` with the given further arguments and returns when the process runs. A peer that was stopped or killed can be
// started again: it then resumes.
func (p *Peer) Start(args ...string) error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	own := []string{"join", "--data-dir", p.Dir, "--name", p.Name, "--advertise", p.Address, "--cgroup-parent", p.cgroup}
	if p.zone != "" {
		own = append(own, "--zone", p.zone)
	}
	command := exec.Command(p.binary, append(own, args...)...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := command.Start
	if p.clock != nil {
		start = func() error { return p.clock.start(command) }
	}
	if err := p.host.do(start); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	p.lock.Lock()
	p.command, p.exited = command, exited
	p.lock.Unlock()
	go func() {
		// How it ended is in its log; waiting here only reaps it.
		_ = command.Wait()
		close(exited)
	}()
	return nil
}

// Dial connects from inside the peer's namespace, as a program on that host would. The address must be literal.
func (p *Peer) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return p.host.dial(ctx, network, address)
}

// Pid is the process ID of the peer, 0 when it does not run.
func (p *Peer) Pid() int {
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.command == nil {
		return 0
	}
	select {
	case <-p.exited:
		return 0
	default:
		return p.command.Process.Pid
	}
}

// Exited is closed when the process that was started last has ended; nil if none was started.
func (p *Peer) Exited() <-chan struct{} {
	p.lock.Lock()
	defer p.lock.Unlock()
	return p.exited
}

// Await waits until the peer's API says that it is ready. It fails at once when the process ends, with what it said last.
func (p *Peer) Await(ctx context.Context) error {
	for {
		if ready, err := p.ready(ctx); ready {
			return nil
		} else if ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w (%v); its log is %s", p.Name, ctx.Err(), err, p.Log)
		}
		select {
		case <-p.Exited():
			return fmt.Errorf("%s ended: %s", p.Name, p.lastWords())
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Peer) ready(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := p.get(ctx, "https://"+net.JoinHostPort(p.Address, apiPort)+"/readyz")
	return status == 200, err
}

// Command runs another command of the same binary inside the peer's namespace and returns what it printed.
func (p *Peer) Command(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, p.binary, args...)
	command.Env = append(os.Environ(), "SHOAL_DATA_DIR="+p.Dir)
	var out, complaint bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaint
	if err := p.host.do(command.Start); err != nil {
		return "", fmt.Errorf("peer %s: %w", args[0], err)
	}
	if err := command.Wait(); err != nil {
		return out.String(), fmt.Errorf("peer %s on %s: %w: %s", strings.Join(args, " "), p.Name, err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// Kill ends the peer with everything on it, by SIGKILL: its process, containerd, shims and containers. What a power cut leaves is left:
// files, mounts and cgroups of a machine that will not clean up after itself.
func (p *Peer) Kill() error {
	if p.host == nil {
		return nil // it was never made
	}
	err := killAll(func() []int { return processesOf(p.host.name, []string{p.Dir, containerd.StateDir(p.Dir)}, p.cgroup) })
	if exited := p.Exited(); err == nil && exited != nil {
		// Its main thread is gone from its namespace a moment before its other threads have closed their files.
		<-exited
	}
	return err
}

// KillProcess ends only the peer's own process, by SIGKILL, and waits for its end. Its containers go on.
func (p *Peer) KillProcess() error {
	if pid := p.Pid(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		<-p.Exited()
	}
	return nil
}

// Stop asks the peer to end, as systemd would, and waits for that.
func (p *Peer) Stop(ctx context.Context) error {
	pid := p.Pid()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.Exited():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w", p.Name, ctx.Err())
	}
}

// wipe gives a peer that was killed an empty data folder, as a host with a new disk has.
func (p *Peer) wipe() error {
	state := containerd.StateDir(p.Dir)
	return errors.Join(unmountBelow(p.Dir), unmountBelow(state), removeCgroups(p.cgroup), os.RemoveAll(state), os.RemoveAll(p.Dir))
}

// lastWords is the end of the peer's log.
func (p *Peer) lastWords() string {
	log, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// close removes everything that the peer left on the machine, its data folder excepted.
func (p *Peer) close() error {
	var failed []error
	if p.forward != nil {
		failed = append(failed, p.forward.close())
	}
	if p.clock != nil {
		p.clock.close()
	}
	state := containerd.StateDir(p.Dir)
	failed = append(failed, p.Kill(), unmountBelow(p.Dir), unmountBelow(state), removeCgroups(p.cgroup), os.RemoveAll(state))
	if p.disk != "" {
		failed = append(failed, p.removeDisk())
	}
	if p.host != nil {
		failed = append(failed, p.host.close())
	}
	sockets, _ := filepath.Glob("/var/run/wireguard/*.sock")
	for _, socket := range sockets {
		// A socket that nobody listens on any more was left by a killed peer.
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			// Several peers may be taken down at once.
			if err := os.Remove(socket); !errors.Is(err, os.ErrNotExist) {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}
