//go:build linux

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// drainLimit is how long output is awaited after its process has ended.
const drainLimit = 2 * time.Second

// Exec implements pods.Streams.
func (e *Engine) Exec(ctx context.Context, id string, command []string, stdio pods.Stdio) (int, error) {
	c, err := e.find(id)
	if err != nil {
		return 0, err
	}
	if !c.is(pods.StatusRunning) {
		return 0, fmt.Errorf("container %s: %w", c.Name, pods.ErrNotRunning)
	}
	if len(command) == 0 {
		return 0, fmt.Errorf("%w: no command", pods.ErrStart)
	}
	ctx = e.in(ctx)
	spec, err := e.execSpec(ctx, c, command, stdio.TTY)
	if err != nil {
		return 0, err
	}
	execID := randomID()
	x := execution{engine: e, container: c, id: execID}
	if x.streams, err = x.open(context.WithoutCancel(ctx), stdio); err != nil {
		return 0, err
	}
	defer x.streams.Close()
	return x.run(ctx, spec, stdio)
}

// execSpec is the container's own process with another command.
func (e *Engine) execSpec(ctx context.Context, c *container, command []string, tty bool) (*specs.Process, error) {
	record, err := e.records.Get(ctx, c.ID)
	if err != nil {
		return nil, engineError(err)
	}
	var spec specs.Spec
	if err := typeurl.UnmarshalTo(record.Spec, &spec); err != nil {
		return nil, err
	}
	process := spec.Process
	process.Args = command
	process.Terminal = tty
	if tty && !hasVariable(process.Env, "TERM") {
		process.Env = append(process.Env, "TERM=xterm")
	}
	return process, nil
}

func hasVariable(env []string, name string) bool {
	for _, entry := range env {
		if strings.HasPrefix(entry, name+"=") {
			return true
		}
	}
	return false
}

// execution is one exec.
type execution struct {
	engine    *Engine
	container *container
	id        string
	streams   cio.IO
}

// open makes the FIFOs between the shim and the caller's streams.
func (x *execution) open(ctx context.Context, stdio pods.Stdio) (cio.IO, error) {
	// A stream nobody wants is still read, or the process would block.
	out, errs := stdio.Out, stdio.Err
	if out == nil {
		out = io.Discard
	}
	if errs == nil {
		errs = io.Discard
	}
	in := stdio.In
	if in != nil {
		// The shim holds the FIFO open itself until it is told of the end.
		in = &endReader{Reader: in, end: func() { x.closeStdin(ctx) }}
	}
	options := []cio.Opt{cio.WithStreams(in, out, errs), cio.WithFIFODir(filepath.Join(x.engine.config.StateDir, "x"))}
	if stdio.TTY {
		options = append(options, cio.WithTerminal)
	}
	streams, err := cio.NewCreator(options...)(x.id)
	if err != nil {
		return nil, fmt.Errorf("streams: %w", diskError(err))
	}
	return streams, nil
}

// endReader calls end once when its reader has ended.
type endReader struct {
	io.Reader
	end  func()
	once sync.Once
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.once.Do(func() { go r.end() })
	}
	return n, err
}

func (x *execution) run(ctx context.Context, spec *specs.Process, stdio pods.Stdio) (int, error) {
	tasks := x.engine.tasks
	encoded, err := typeurl.MarshalAnyToProto(spec)
	if err != nil {
		return 0, err
	}
	config := x.streams.Config()
	_, err = tasks.Exec(ctx, &tasksapi.ExecProcessRequest{
		ContainerID: x.container.ID,
		ExecID:      x.id,
		Stdin:       config.Stdin,
		Stdout:      config.Stdout,
		Stderr:      config.Stderr,
		Terminal:    config.Terminal,
		Spec:        encoded,
	})
	if err != nil {
		x.streams.Cancel()
		return 0, x.failed(errgrpc.ToNative(err))
	}
	background := context.WithoutCancel(ctx)
	defer func() {
		_, err := tasks.DeleteProcess(background, &tasksapi.DeleteProcessRequest{ContainerID: x.container.ID, ExecID: x.id})
		if err = ignoreNotFound(errgrpc.ToNative(err)); err != nil {
			x.engine.logger.Debug("exec process not deleted", "container", x.container.ID, "err", err)
		}
	}()
	if _, err = tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: x.container.ID, ExecID: x.id}); err != nil {
		x.streams.Cancel()
		return 0, x.failed(errgrpc.ToNative(err))
	}
	ended := make(chan struct{})
	defer close(ended)
	go x.watch(background, ctx.Done(), stdio.Resize, ended)
	exit, err := tasks.Wait(background, &tasksapi.WaitRequest{ContainerID: x.container.ID, ExecID: x.id})
	if err != nil {
		x.streams.Cancel()
		return 0, x.failed(errgrpc.ToNative(err))
	}
	x.drain()
	if ctx.Err() != nil {
		return int(exit.ExitStatus), ctx.Err()
	}
	return int(exit.ExitStatus), nil
}

// drain waits for the last output. A process left in the background that holds
// the streams open must not keep the caller for ever.
func (x *execution) drain() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.streams.Wait()
	}()
	select {
	case <-done:
	case <-time.After(drainLimit):
		x.streams.Cancel()
	}
}

// closeStdin gives the process its end of file.
func (x *execution) closeStdin(ctx context.Context) {
	_, err := x.engine.tasks.CloseIO(ctx, &tasksapi.CloseIORequest{ContainerID: x.container.ID, ExecID: x.id, Stdin: true})
	if err = ignoreNotFound(errgrpc.ToNative(err)); err != nil {
		x.engine.logger.Debug("stdin of exec not closed", "container", x.container.ID, "err", err)
	}
}

// watch passes on terminal sizes and kills the process when the caller goes.
func (x *execution) watch(ctx context.Context, gone <-chan struct{}, sizes <-chan pods.Size, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case size, open := <-sizes:
			if !open {
				sizes = nil
				continue
			}
			if err := x.engine.resize(ctx, x.container.ID, x.id, size); err != nil {
				x.engine.logger.Debug("terminal not resized", "container", x.container.ID, "err", err)
			}
		case <-gone:
			_, err := x.engine.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: x.container.ID, ExecID: x.id, Signal: uint32(unix.SIGKILL)})
			if err = ignoreNotFound(errgrpc.ToNative(err)); err != nil {
				x.engine.logger.Debug("exec process not killed", "container", x.container.ID, "err", err)
			}
			x.streams.Cancel()
			return
		}
	}
}

func (x *execution) failed(err error) error {
	switch {
	case errdefs.IsUnavailable(err):
		return engineError(err)
	case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err), !x.container.is(pods.StatusRunning):
		return fmt.Errorf("container %s: %w: %w", x.container.Name, pods.ErrNotRunning, err)
	}
	return fmt.Errorf("%w: %s", pods.ErrStart, startMessage(err))
}

func (e *Engine) resize(ctx context.Context, id, execID string, size pods.Size) error {
	_, err := e.tasks.ResizePty(ctx, &tasksapi.ResizePtyRequest{
		ContainerID: id, ExecID: execID, Width: uint32(size.Width), Height: uint32(size.Height),
	})
	return errgrpc.ToNative(err)
}

func randomID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// DialPod implements pods.Streams.
func (e *Engine) DialPod(ctx context.Context, podUID, network, address string) (net.Conn, error) {
	s := e.sandbox(podUID)
	if s == nil {
		return nil, fmt.Errorf("sandbox of pod %s: %w", podUID, pods.ErrNotFound)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	candidates := []string{host}
	if host == "localhost" {
		candidates = []string{"127.0.0.1", "::1"}
	}
	var failed []error
	for _, candidate := range candidates {
		// Only addresses: a name would be resolved on other threads, outside the namespace.
		if net.ParseIP(candidate) == nil {
			return nil, fmt.Errorf("dial into pod: %q is not an address", candidate)
		}
		conn, err := e.dialIn(ctx, s, network, net.JoinHostPort(candidate, port))
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

func (e *Engine) dialIn(ctx context.Context, s *sandbox, network, address string) (conn net.Conn, err error) {
	var dialer net.Dialer
	if s.HostNetwork {
		return dialer.DialContext(ctx, network, address)
	}
	err = inNetwork(s.NetNS, func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
