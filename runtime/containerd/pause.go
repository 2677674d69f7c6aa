//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"shoal/runtime/pods"
)

// pauseName is no valid name of a pod's container, so it cannot clash.
const pauseName = "POD"

// startPause runs the process that is number 1 in a pod's shared pid namespace
// and reaps what the containers leave. Its root file system is a folder with
// nothing but our own static program in it.
func (e *Engine) startPause(ctx context.Context, s *sandbox) error {
	id := containerID(s.PodUID, pauseName, 0)
	root := filepath.Join(s.folder, "pause")
	if err := os.MkdirAll(root, 0o711); err != nil {
		return diskError(err)
	}
	c := newContainer(record{
		ID:        id,
		PodUID:    s.PodUID,
		Name:      pauseName,
		Cgroup:    s.Cgroup + "/" + id,
		CreatedAt: time.Now(),
		Pause:     true,
	}, e.containerFolder(id))
	if err := os.MkdirAll(c.folder, 0o711); err != nil {
		return diskError(err)
	}
	spec, err := e.pauseSpec(ctx, c, s, root)
	if err != nil {
		return err
	}
	if err := e.recordContainer(ctx, c, spec, ""); err != nil {
		return err
	}
	if err := writeJSON(c.file(recordFile), c.record); err != nil {
		return err
	}
	e.mu.Lock()
	e.containers[id] = c
	e.mu.Unlock()
	s.PauseID = id
	_, err = e.Start(ctx, id)
	return err
}

func (e *Engine) pauseSpec(ctx context.Context, c *container, s *sandbox, root string) (*oci.Spec, error) {
	input := specInput{
		id:      c.ID,
		sandbox: s,
		spec: pods.ContainerSpec{
			PodUID:   s.PodUID,
			Command:  []string{"/pause", "pause"},
			Mounts:   []pods.Mount{{HostPath: e.config.Shim, ContainerPath: "/pause", ReadOnly: true}},
			Security: pods.Security{NoNewPrivileges: true, DropCaps: []string{"ALL"}},
		},
	}
	spec, err := e.buildSpec(ctx, input)
	if err != nil {
		return nil, err
	}
	spec.Root = &specs.Root{Path: root}
	return spec, nil
}

// removePause ends a sandbox's pause process.
func (e *Engine) removePause(ctx context.Context, s *sandbox) error {
	err := e.Remove(ctx, s.PauseID)
	if err != nil && !errors.Is(err, pods.ErrNotFound) {
		return fmt.Errorf("pause process: %w", err)
	}
	return nil
}
