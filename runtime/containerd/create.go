//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"

	"shoal/runtime/pods"
)

// Labels on what we keep in containerd.
const (
	labelRoot   = "containerd.io/gc.root" // keeps a snapshot until it is removed by name
	labelPodUID = "io.kubernetes.pod.uid"
	labelName   = "io.kubernetes.container.name"
)

// Create implements pods.Containers.
func (e *Engine) Create(ctx context.Context, spec pods.ContainerSpec) (pods.ContainerState, error) {
	id := containerID(spec.PodUID, spec.Name, spec.Attempt)
	if found := e.container(id); found != nil {
		return found.state(), nil
	}
	sandbox := e.sandbox(spec.PodUID)
	if sandbox == nil {
		return pods.ContainerState{}, fmt.Errorf("sandbox of pod %s: %w", spec.PodUID, pods.ErrNotFound)
	}
	ctx = e.in(ctx)
	image, err := e.imageFor(ctx, spec)
	if err != nil {
		return pods.ContainerState{}, err
	}
	target, err := e.pidTarget(spec, sandbox)
	if err != nil {
		return pods.ContainerState{}, err
	}
	signal := spec.StopSignal
	if signal == "" {
		signal = image.config.StopSignal
	}
	c := newContainer(record{
		ID:          id,
		PodUID:      spec.PodUID,
		Name:        spec.Name,
		Attempt:     spec.Attempt,
		Labels:      maps.Clone(spec.Labels),
		Image:       spec.Image,
		ImageID:     image.ID,
		LogPath:     spec.LogPath,
		LogMaxBytes: spec.LogMaxBytes,
		LogMaxFiles: spec.LogMaxFiles,
		StopSignal:  signal,
		Stdin:       spec.Stdin,
		StdinOnce:   spec.StdinOnce,
		TTY:         spec.TTY,
		Cgroup:      sandbox.Cgroup + "/" + id,
		CreatedAt:   time.Now(),
	}, e.containerFolder(id))
	if _, err := parseSignal(signal); err != nil {
		return pods.ContainerState{}, fmt.Errorf("%w: %w", pods.ErrConfig, err)
	}
	input := specInput{id: id, spec: spec, sandbox: sandbox, image: image.config, target: target}
	if err := e.makeContainer(ctx, c, image, input); err != nil {
		// What was made is removed, so that the next attempt starts clean.
		return pods.ContainerState{}, errors.Join(engineError(err), e.discard(context.WithoutCancel(ctx), id))
	}
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	return c.state(), nil
}

// pidTarget finds the process whose pid namespace is to be joined, 0 for none.
func (e *Engine) pidTarget(spec pods.ContainerSpec, s *sandbox) (int, error) {
	id := spec.TargetContainerID
	if id == "" && spec.SharePID {
		id = s.PauseID
	}
	if id == "" {
		return 0, nil
	}
	c, err := e.find(id)
	if err != nil {
		return 0, err
	}
	if pid := c.state().PID; pid != 0 {
		return pid, nil
	}
	return 0, fmt.Errorf("container %s: %w", id, pods.ErrNotRunning)
}

// makeContainer makes root file system, containerd's record and our folder.
func (e *Engine) makeContainer(ctx context.Context, c *container, image *imageInfo, input specInput) error {
	if err := os.MkdirAll(c.folder, 0o711); err != nil {
		return diskError(err)
	}
	prepared := false
	if !image.filesKnown() {
		// The first container of an image: its root file system is looked at.
		mounts, err := e.prepare(ctx, c.ID, image)
		if err != nil {
			return err
		}
		c.mounts, prepared = mounts, true
		if err := image.loadFiles(ctx, mounts); err != nil {
			return fmt.Errorf("files of image %s: %w", c.Image, err)
		}
	}
	input.files = image.knownFiles()
	spec, err := e.buildSpec(ctx, input)
	if err != nil {
		return err
	}
	var parts errgroup.Group
	if !prepared {
		parts.Go(func() (err error) {
			c.mounts, err = e.prepare(ctx, c.ID, image)
			return err
		})
	}
	parts.Go(func() error { return e.recordContainer(ctx, c, spec, image.name()) })
	if err := parts.Wait(); err != nil {
		return err
	}
	return writeJSON(c.file(recordFile), c.record)
}

// prepare makes the writable layer over an image.
func (e *Engine) prepare(ctx context.Context, id string, image *imageInfo) ([]mount.Mount, error) {
	prepare := func() ([]mount.Mount, error) {
		return e.snapshots.Prepare(ctx, id, image.chainID, snapshots.WithLabels(map[string]string{labelRoot: time.Now().UTC().Format(time.RFC3339)}))
	}
	mounts, err := prepare()
	switch {
	case errdefs.IsAlreadyExists(err):
		// Left by an attempt whose peer was killed.
		if err := e.snapshots.Remove(ctx, id); err != nil {
			return nil, err
		}
		return prepare()
	case errdefs.IsNotFound(err):
		// The layers are here but not unpacked for this snapshotter.
		if err := e.unpack(ctx, image); err != nil {
			return nil, err
		}
		return prepare()
	}
	return mounts, err
}

func (e *Engine) recordContainer(ctx context.Context, c *container, spec *oci.Spec, imageName string) error {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	entry := containers.Container{
		ID:          c.ID,
		Labels:      map[string]string{labelPodUID: c.PodUID, labelName: c.Name},
		Image:       imageName,
		Runtime:     containers.RuntimeInfo{Name: e.runtimeName()},
		Spec:        encoded,
		Snapshotter: e.config.Snapshotter,
		SnapshotKey: c.ID,
	}
	if c.Pause {
		entry.Snapshotter, entry.SnapshotKey = "", ""
	}
	if !e.config.SystemShim {
		entry.SandboxID = shimSandbox
	}
	_, err = e.records.Create(ctx, entry)
	if errdefs.IsAlreadyExists(err) {
		if err := e.records.Delete(ctx, c.ID); err != nil {
			return err
		}
		_, err = e.records.Create(ctx, entry)
	}
	return err
}

// runtimeName tells containerd which shim runs a container.
func (e *Engine) runtimeName() string {
	if e.config.SystemShim {
		return "io.containerd.runc.v2"
	}
	return e.config.Shim
}

// discard removes everything of a container that has no task. It can be called
// for half-made ones.
func (e *Engine) discard(ctx context.Context, id string) error {
	var parts errgroup.Group
	parts.Go(func() error { return ignoreNotFound(e.records.Delete(ctx, id)) })
	parts.Go(func() error { return ignoreNotFound(e.snapshots.Remove(ctx, id)) })
	if err := parts.Wait(); err != nil {
		return engineError(err)
	}
	return os.RemoveAll(e.containerFolder(id))
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
