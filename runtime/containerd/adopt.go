//go:build linux

package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"

	"shoal/runtime/containerd/exitrecord"
	"shoal/runtime/pods"
)

// lostStatus is the exit code of a container of which nobody knows how it ended
// (its shim was killed). It is that of SIGKILL, as containerd reports it too.
const lostStatus = 128 + uint32(unix.SIGKILL)

// adopt takes up what an earlier engine with the same folders left, then sweeps
// what belongs to nothing.
func (e *Engine) adopt(ctx context.Context) error {
	if !e.config.SystemShim {
		if err := e.recordShimSandbox(ctx); err != nil {
			return err
		}
	}
	if err := e.loadImages(ctx); err != nil {
		return fmt.Errorf("images: %w", engineError(err))
	}
	entries, err := os.ReadDir(e.containerFolder(""))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		c, err := loadContainer(e.containerFolder(entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the sweep removes it
		}
		if err != nil {
			return err
		}
		e.containers[c.ID] = c
	}
	if err := e.refresh(ctx); err != nil {
		return err
	}
	// Containers before sandboxes, whose shims are needed to end them.
	if err := e.sweepContainers(ctx); err != nil {
		return err
	}
	if err := e.loadSandboxes(ctx); err != nil {
		return err
	}
	return e.sweep(ctx)
}

// refresh compares what we believe with containerd's tasks and the exit records.
func (e *Engine) refresh(ctx context.Context) error {
	response, err := e.tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return engineError(errgrpc.ToNative(err))
	}
	tasks := map[string]*tasktypes.Process{}
	for _, task := range response.Tasks {
		tasks[task.ID] = task
	}
	e.mu.Lock()
	known := make([]*container, 0, len(e.containers))
	for _, c := range e.containers {
		known = append(known, c)
	}
	e.mu.Unlock()
	for _, c := range known {
		e.reconcile(ctx, c, tasks[c.ID])
	}
	return nil
}

// reconcile brings one container to what is true; task is nil when containerd
// listed none. The list may be older than the container's start: nothing is
// concluded from what is not in it, or was no longer running then.
func (e *Engine) reconcile(ctx context.Context, c *container, task *tasktypes.Process) {
	if c.is(pods.StatusExited) {
		return
	}
	end, err := exitrecord.Read(c.file(exitFile))
	switch {
	case err == nil:
		c.mu.Lock()
		if c.started.IsZero() {
			c.started = end.ExitedAt
		}
		c.mu.Unlock()
		e.finish(ctx, c, end)
	case task == nil && c.wasStarted(), task != nil && task.Status == tasktypes.Status_STOPPED:
		e.askForEnd(ctx, c)
	case task != nil && task.Status != tasktypes.Status_CREATED:
		c.mu.Lock()
		started := c.started
		c.mu.Unlock()
		if started.IsZero() {
			started = c.CreatedAt // the peer died between start and its record
		}
		c.setStarted(started, int(task.Pid))
	}
}

// askForEnd asks containerd about a container that seems to have ended without
// a record of it, while no verb works on it.
func (e *Engine) askForEnd(ctx context.Context, c *container) {
	c.verb.Lock()
	defer c.verb.Unlock()
	if c.is(pods.StatusExited) {
		return
	}
	response, err := e.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: c.ID})
	switch err := errgrpc.ToNative(err); {
	case errdefs.IsNotFound(err):
		e.finish(ctx, c, exitrecord.Record{ID: c.ID, Status: lostStatus, ExitedAt: time.Now(), Message: "the container's shim was lost"})
	case err != nil:
		e.logger.Warn("containerd does not say whether a container runs", "container", c.ID, "err", err)
	case response.Process.Status == tasktypes.Status_STOPPED:
		end := response.Process
		e.finish(ctx, c, exitrecord.Record{ID: c.ID, PID: end.Pid, Status: end.ExitStatus, ExitedAt: end.ExitedAt.AsTime()})
	}
}

func (c *container) wasStarted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.started.IsZero()
}

// sweep removes containers without a sandbox and cgroups without either: the
// rests of a peer that was killed in the middle.
func (e *Engine) sweep(ctx context.Context) error {
	for id, c := range e.containers {
		if e.sandboxes[c.PodUID] == nil {
			e.logger.Info("container without a sandbox, removing it", "container", id, "pod", c.PodUID)
			if err := e.Remove(ctx, id); err != nil {
				return err
			}
		}
	}
	return e.sweepCgroups(e.cgroups.root)
}

// sweepContainers removes what lies in our namespace of containerd and in our
// folders and belongs to no container that we know, for instance everything of
// before a reboot.
func (e *Engine) sweepContainers(ctx context.Context) error {
	var orphans []string
	entries, err := os.ReadDir(e.containerFolder(""))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		orphans = append(orphans, entry.Name())
	}
	records, err := e.records.List(ctx)
	if err != nil {
		return engineError(err)
	}
	for _, record := range records {
		orphans = append(orphans, record.ID)
	}
	err = e.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && info.Labels[labelRoot] != "" {
			orphans = append(orphans, info.Name)
		}
		return nil
	})
	if err != nil {
		return engineError(err)
	}
	swept := map[string]bool{}
	for _, id := range orphans {
		if e.containers[id] != nil || swept[id] {
			continue
		}
		swept[id] = true
		e.logger.Info("container without a record, removing it", "container", id)
		if err := e.sweepTask(ctx, id); err != nil {
			return err
		}
		if err := e.discard(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// sweepTask kills and deletes a task that may exist.
func (e *Engine) sweepTask(ctx context.Context, id string) error {
	c := newContainer(record{ID: id}, e.containerFolder(id))
	if err := e.signal(ctx, c, unix.SIGKILL); err != nil {
		return err
	}
	var last error
	err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, shimCallLimit, true, func(ctx context.Context) (bool, error) {
		last = e.deleteTask(ctx, c)
		return last == nil, nil
	})
	if err != nil {
		return cmp.Or(last, err)
	}
	return nil
}

// sweepCgroups removes the cgroups of pods that are no more. Whatever still
// runs in them is killed.
func (e *Engine) sweepCgroups(at string) error {
	names, err := e.cgroups.children(at)
	if err != nil {
		return err
	}
	used := func(cgroup string) bool {
		for _, s := range e.sandboxes {
			if s.Cgroup == cgroup || strings.HasPrefix(s.Cgroup, cgroup+"/") || strings.HasPrefix(cgroup, s.Cgroup+"/") {
				return true
			}
		}
		return false
	}
	for _, name := range names {
		cgroup := path.Join(at, name)
		if used(cgroup) {
			continue
		}
		if err := e.cgroups.killAll(cgroup); err != nil {
			return err
		}
		if err := e.cgroups.remove(cgroup); err != nil {
			return err
		}
	}
	return nil
}

// Teardown removes all pods, the cgroups and the state folder's contents that
// are the engine's, then closes it. Images stay. For a peer that leaves for good.
func (e *Engine) Teardown(ctx context.Context) error {
	e.mu.Lock()
	var uids []string
	for uid := range e.sandboxes {
		uids = append(uids, uid)
	}
	e.mu.Unlock()
	var failed []error
	for _, uid := range uids {
		failed = append(failed, e.RemoveSandbox(ctx, uid))
	}
	failed = append(failed, e.cgroups.removeRoot(), e.Close())
	if err := errors.Join(failed...); err != nil {
		return err
	}
	for _, name := range []string{"p", "k", "s", "r", "fence", "heartbeat"} {
		failed = append(failed, os.RemoveAll(path.Join(e.config.StateDir, name)))
	}
	return errors.Join(failed...)
}
