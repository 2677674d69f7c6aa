//go:build linux

package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/wait"

	"shoal/runtime/containerd/crilog"
	"shoal/runtime/containerd/exitrecord"
	"shoal/runtime/pods"
)

// Exit codes of containers that never ran, as the kubelet shows them.
const (
	exitNoSuchFile = 127
	exitNotStarted = 128
)

// Start implements pods.Containers.
func (e *Engine) Start(ctx context.Context, id string) (pods.ContainerState, error) {
	c, err := e.find(id)
	if err != nil {
		return pods.ContainerState{}, err
	}
	c.verb.Lock()
	defer c.verb.Unlock()
	if !c.is(pods.StatusCreated) {
		return c.state(), nil
	}
	if err := e.mayRun(c); err != nil {
		return c.state(), err
	}
	ctx = e.in(ctx)
	pid, err := e.startTask(ctx, c)
	if err != nil {
		return e.startFailed(ctx, c, err)
	}
	start := startRecord{StartedAt: time.Now(), PID: pid}
	c.setStarted(start.StartedAt, pid)
	if err := writeJSON(c.file(startFile), start); err != nil {
		// It runs; only a later peer will not know since when.
		e.logger.Warn("start of container not recorded", "container", id, "err", err)
	}
	return c.state(), nil
}

// startTask makes the container's processes exist and run.
func (e *Engine) startTask(ctx context.Context, c *container) (pid int, err error) {
	if err := e.reviveShim(ctx, c.PodUID); err != nil {
		return 0, err
	}
	request, err := e.taskRequest(ctx, c)
	if err != nil {
		return 0, err
	}
	if _, err := e.tasks.Create(ctx, request); err != nil {
		err = errgrpc.ToNative(err)
		if !errdefs.IsAlreadyExists(err) {
			return 0, err
		}
		// An earlier Start whose answer was lost.
		pid, running, err := e.takeUpTask(ctx, request)
		if err != nil || running {
			return pid, err
		}
	}
	response, err := e.tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: c.ID})
	if err != nil {
		_, deleteErr := e.tasks.Delete(context.WithoutCancel(ctx), &tasksapi.DeleteTaskRequest{ContainerID: c.ID})
		return 0, errors.Join(errgrpc.ToNative(err), ignoreNotFound(errgrpc.ToNative(deleteErr)))
	}
	return int(response.Pid), nil
}

// takeUpTask makes an existing task ready to be started, unless it runs already.
func (e *Engine) takeUpTask(ctx context.Context, request *tasksapi.CreateTaskRequest) (pid int, running bool, err error) {
	found, err := e.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: request.ContainerID})
	if err != nil {
		return 0, false, errgrpc.ToNative(err)
	}
	switch found.Process.Status {
	case tasktypes.Status_RUNNING:
		return int(found.Process.Pid), true, nil
	case tasktypes.Status_CREATED:
		return 0, false, nil
	}
	if _, err := e.tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: request.ContainerID}); err != nil {
		return 0, false, errgrpc.ToNative(err)
	}
	_, err = e.tasks.Create(ctx, request)
	return 0, false, errgrpc.ToNative(err)
}

func (e *Engine) taskRequest(ctx context.Context, c *container) (*tasksapi.CreateTaskRequest, error) {
	request := &tasksapi.CreateTaskRequest{ContainerID: c.ID, Terminal: c.TTY}
	if !c.Pause {
		mounts := c.mounts
		if mounts == nil {
			var err error
			if mounts, err = e.snapshots.Mounts(ctx, c.ID); err != nil {
				return nil, err
			}
		}
		request.Rootfs = mount.ToProto(mounts)
	}
	target := crilog.Target{Path: c.LogPath, MaxBytes: c.LogMaxBytes, MaxFiles: c.LogMaxFiles, ExitPath: c.file(exitFile)}
	if target.Path == "" {
		target.Path = "/dev/null"
	}
	output := target.URL()
	if e.config.SystemShim {
		// A foreign shim cannot write our logs; it runs our program beside it.
		output = (&url.URL{Scheme: "binary", Path: e.config.Shim, RawQuery: url.Values{crilog.Scheme: {output}}.Encode()}).String()
	}
	request.Stdout = output
	if !c.TTY {
		request.Stderr = output
	}
	if c.Stdin {
		request.Stdin = c.file(stdinFile)
		if err := unix.Mkfifo(request.Stdin, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("stdin: %w", diskError(err))
		}
	}
	if e.config.SystemShim {
		return request, nil
	}
	encoded, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: e.config.Shim, Root: e.runcRoot()})
	if err != nil {
		return nil, err
	}
	request.Options = encoded
	request.TaskApiAddress = "ttrpc+" + e.shimAddress(c.PodUID)
	request.TaskApiVersion = shimVersion
	return request, nil
}

// runcRoot is where the runtime keeps its state, apart from other engines'.
func (e *Engine) runcRoot() string { return e.config.StateDir + "/r" }

// startFailed tells the runtime being away, after which Start can be tried
// again, from a container that cannot start, which ends as exited.
func (e *Engine) startFailed(ctx context.Context, c *container, cause error) (pods.ContainerState, error) {
	if ctx.Err() != nil {
		return c.state(), errors.Join(ctx.Err(), e.deleteTask(context.WithoutCancel(ctx), c))
	}
	if status.Code(cause) == codes.Unavailable || errdefs.IsUnavailable(cause) {
		return c.state(), fmt.Errorf("%w: %w", pods.ErrUnavailable, cause)
	}
	message := startMessage(cause)
	end := exitrecord.Record{ID: c.ID, Status: exitNotStarted, ExitedAt: time.Now(), Message: message}
	if strings.Contains(message, "no such file or directory") || strings.Contains(message, "executable file not found") {
		end.Status = exitNoSuchFile
	}
	c.setFailed(end)
	err := fmt.Errorf("%w: %s", pods.ErrStart, message)
	if diskFull(cause) {
		err = fmt.Errorf("%w: the disk is full: %s", pods.ErrStart, message)
	}
	if writeErr := exitrecord.Write(c.file(exitFile), end); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	return c.state(), err
}

// startMessage strips what only says which layers the error went through.
func startMessage(err error) string {
	message := err.Error()
	for _, noise := range []string{
		"failed to create shim task: ", "OCI runtime create failed: ", "OCI runtime start failed: ",
		"create: ", "runc create failed: ", "unable to start container process: ", "error during container init: ",
	} {
		message = strings.ReplaceAll(message, noise, "")
	}
	return strings.TrimSuffix(message, ": unknown")
}

// Stop implements pods.Containers.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) (pods.ContainerState, error) {
	c, err := e.find(id)
	if err != nil {
		return pods.ContainerState{}, err
	}
	if done, err := e.endCreated(c); done {
		return c.state(), err
	}
	signal, err := parseSignal(c.StopSignal)
	if err != nil {
		return c.state(), fmt.Errorf("%w: %w", pods.ErrConfig, err)
	}
	if grace > 0 && signal != unix.SIGKILL {
		if err := e.signal(e.in(ctx), c, signal); err != nil {
			return c.state(), err
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
			return c.state(), nil
		case <-ctx.Done():
			return c.state(), ctx.Err()
		case <-timer.C:
		}
	}
	if err := e.signal(e.in(ctx), c, unix.SIGKILL); err != nil {
		return c.state(), err
	}
	select {
	case <-c.exited:
		return c.state(), nil
	case <-ctx.Done():
		return c.state(), ctx.Err()
	}
}

// Kill implements pods.Containers.
func (e *Engine) Kill(ctx context.Context, id string) (pods.ContainerState, error) {
	return e.Stop(ctx, id, 0)
}

// endCreated ends a container that never ran; done also for one that has exited.
func (e *Engine) endCreated(c *container) (done bool, err error) {
	c.verb.Lock()
	defer c.verb.Unlock()
	if c.is(pods.StatusRunning) {
		return false, nil
	}
	if c.is(pods.StatusExited) {
		return true, nil
	}
	end := exitrecord.Record{ID: c.ID, Status: 128 + uint32(unix.SIGKILL), ExitedAt: time.Now(), Message: "stopped before it was started"}
	c.mu.Lock()
	c.taskGone = true
	c.mu.Unlock()
	c.setExited(end)
	return true, exitrecord.Write(c.file(exitFile), end)
}

// signal sends a signal to the main process. That it is gone already is fine:
// the news of its exit is on the way.
func (e *Engine) signal(ctx context.Context, c *container, signal unix.Signal) error {
	_, err := e.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: c.ID, Signal: uint32(signal)})
	err = errgrpc.ToNative(err)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	// From the runtime and of a shim that was killed; they come as text.
	if err != nil && (strings.Contains(err.Error(), "process already finished") || strings.Contains(err.Error(), "ttrpc: closed")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal %d to container %s: %w", signal, c.ID, engineError(err))
	}
	return nil
}

// Remove implements pods.Containers.
func (e *Engine) Remove(ctx context.Context, id string) error {
	c := e.container(id)
	if c == nil {
		return nil
	}
	if _, err := e.Kill(ctx, id); err != nil {
		return err
	}
	c.verb.Lock()
	defer c.verb.Unlock()
	ctx = e.in(ctx)
	if err := e.deleteTask(ctx, c); err != nil {
		return err
	}
	if err := e.discard(ctx, id); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.containers, id)
	e.mu.Unlock()
	return nil
}

// deleteTask frees what containerd and the shim hold of an ended container.
// Under c.verb.
func (e *Engine) deleteTask(ctx context.Context, c *container) error {
	c.mu.Lock()
	gone := c.taskGone
	c.mu.Unlock()
	if gone {
		return nil
	}
	var last error
	pauses := wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 8}
	err := wait.ExponentialBackoffWithContext(ctx, pauses, func(ctx context.Context) (bool, error) {
		_, err := e.tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: c.ID})
		if last = ignoreNotFound(errgrpc.ToNative(err)); last != nil && strings.Contains(last.Error(), "ttrpc: closed") {
			return false, nil // the shim has just ended; containerd cleans up after it in a moment
		}
		return last == nil, last
	})
	if err != nil {
		return fmt.Errorf("delete task of container %s: %w", c.ID, engineError(cmp.Or(last, err)))
	}
	c.mu.Lock()
	c.taskGone = true
	c.mu.Unlock()
	return nil
}

// Update implements pods.Containers.
func (e *Engine) Update(ctx context.Context, id string, resources pods.Resources) error {
	c, err := e.find(id)
	if err != nil {
		return err
	}
	if !c.is(pods.StatusRunning) {
		return fmt.Errorf("container %s: %w", id, pods.ErrNotRunning)
	}
	encoded, err := typeurl.MarshalAnyToProto(e.cgroups.resources(resources))
	if err != nil {
		return err
	}
	_, err = e.tasks.Update(e.in(ctx), &tasksapi.UpdateTaskRequest{ContainerID: id, Resources: encoded})
	switch err = errgrpc.ToNative(err); {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err), errdefs.IsUnavailable(err):
		return engineError(err)
	default:
		return fmt.Errorf("%w: %w", pods.ErrConfig, err)
	}
}

// parseSignal reads "SIGTERM", "TERM" or "15"; empty is SIGTERM.
func parseSignal(name string) (unix.Signal, error) {
	if name == "" {
		return unix.SIGTERM, nil
	}
	if number, err := strconv.Atoi(name); err == nil && number > 0 && number < 65 {
		return unix.Signal(number), nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if signal := unix.SignalNum(full); signal != 0 {
		return signal, nil
	}
	return 0, fmt.Errorf("unknown stop signal %q", name)
}
