//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// shmSize is the size of a pod's shared /dev/shm, bytes (Kubernetes' value).
const shmSize = 64 << 20

// sandbox is a made sandbox. Its exported part is kept in sandbox.json, which
// is written last: without it the folder is the rest of an attempt.
type sandbox struct {
	pods.Sandbox
	HostNetwork bool
	HostIPC     bool
	SharedPID   bool
	Identity    bool   // listed for the watchdog
	Cgroup      string // absolute, below the cgroup mounts
	ShimAddress string // of the shim's socket; empty with the system's shim, which containerd starts
	PauseID     string // container that holds the shared pid namespace
	folder      string
}

const sandboxFile = "sandbox.json"

// CreateSandbox implements pods.Sandboxes.
func (e *Engine) CreateSandbox(ctx context.Context, spec pods.SandboxSpec) (pods.Sandbox, error) {
	if spec.PodUID == "" || filepath.Base(spec.PodUID) != spec.PodUID {
		return pods.Sandbox{}, fmt.Errorf("%w: pod UID %q", pods.ErrConfig, spec.PodUID)
	}
	if found := e.sandbox(spec.PodUID); found != nil {
		return found.Sandbox, nil
	}
	s := &sandbox{
		Sandbox: pods.Sandbox{
			PodUID:    spec.PodUID,
			Namespace: spec.Namespace,
			Name:      spec.Name,
			Labels:    maps.Clone(spec.Labels),
			CreatedAt: time.Now(),
		},
		HostNetwork: spec.HostNetwork,
		HostIPC:     spec.HostIPC,
		SharedPID:   spec.ShareProcessNamespace && !spec.HostPID,
		Identity:    spec.Identity,
		Cgroup:      path.Join(e.cgroups.root, path.Clean("/"+spec.CgroupParent)),
		folder:      e.sandboxFolder(spec.PodUID),
	}
	if s.Cgroup == e.cgroups.root {
		s.Cgroup = path.Join(e.cgroups.root, "pod"+spec.PodUID)
	}
	if !spec.HostNetwork {
		s.NetNS = filepath.Join(s.folder, pinNet)
	}
	if err := e.makeSandbox(e.in(ctx), s, spec); err != nil {
		// The next attempt must find nothing; what cannot be removed is told too.
		return pods.Sandbox{}, errors.Join(engineError(err), e.destroySandbox(e.in(context.WithoutCancel(ctx)), s))
	}
	e.mu.Lock()
	e.sandboxes[spec.PodUID] = s
	e.mu.Unlock()
	return s.Sandbox, nil
}

// makeSandbox does the independent parts at once.
func (e *Engine) makeSandbox(ctx context.Context, s *sandbox, spec pods.SandboxSpec) error {
	if err := os.MkdirAll(s.folder, 0o711); err != nil {
		return diskError(err)
	}
	if s.Identity {
		if err := e.fence.Add(e.fenced(s)); err != nil {
			return diskError(err)
		}
	}
	var parts errgroup.Group
	parts.Go(func() error { return pinNamespaces(s.folder, spec) })
	parts.Go(func() error { return e.startShim(ctx, s) })
	parts.Go(func() error {
		if err := e.cgroups.limit(s.Cgroup, spec.Resources); err != nil {
			return err
		}
		if spec.HostIPC {
			return nil
		}
		return mountShm(filepath.Join(s.folder, "shm"))
	})
	if err := parts.Wait(); err != nil {
		return err
	}
	if s.SharedPID {
		if err := e.startPause(ctx, s); err != nil {
			return fmt.Errorf("pause process: %w", err)
		}
	}
	return writeJSON(filepath.Join(s.folder, sandboxFile), s)
}

func mountShm(folder string) error {
	if err := os.MkdirAll(folder, 0o711); err != nil {
		return diskError(err)
	}
	options := fmt.Sprintf("mode=1777,size=%d", shmSize)
	if err := unix.Mount("shm", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	return nil
}

// RemoveSandbox implements pods.Sandboxes.
func (e *Engine) RemoveSandbox(ctx context.Context, podUID string) error {
	s := e.sandbox(podUID)
	if s == nil {
		return nil
	}
	if err := e.removeContainers(ctx, podUID); err != nil {
		return err
	}
	if err := e.destroySandbox(e.in(ctx), s); err != nil {
		return engineError(err)
	}
	e.mu.Lock()
	delete(e.sandboxes, podUID)
	e.mu.Unlock()
	return nil
}

// removeContainers removes all containers of a pod at once.
func (e *Engine) removeContainers(ctx context.Context, podUID string) error {
	var all errgroup.Group
	e.mu.Lock()
	for id, c := range e.containers {
		if c.PodUID == podUID {
			all.Go(func() error { return e.Remove(ctx, id) })
		}
	}
	e.mu.Unlock()
	return all.Wait()
}

// destroySandbox removes everything of a sandbox whose containers are gone. It
// can be called again after a failure, and for half-made sandboxes.
func (e *Engine) destroySandbox(ctx context.Context, s *sandbox) error {
	if s.PauseID != "" {
		if err := e.removePause(ctx, s); err != nil {
			return err
		}
	}
	if err := e.stopShim(ctx, s); err != nil {
		return err
	}
	if err := e.cgroups.remove(s.Cgroup); err != nil {
		return err
	}
	if err := e.fence.Remove(s.PodUID); err != nil {
		return err
	}
	var failed []error
	for _, name := range []string{pinNet, pinIPC, pinUTS, "shm"} {
		failed = append(failed, unpin(filepath.Join(s.folder, name)))
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.RemoveAll(s.folder)
}

// sandbox returns nil when there is none.
func (e *Engine) sandbox(podUID string) *sandbox {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sandboxes[podUID]
}

// loadSandboxes takes up what a predecessor left. Sandboxes that are not whole
// any more are destroyed.
func (e *Engine) loadSandboxes(ctx context.Context) error {
	entries, err := os.ReadDir(e.sandboxFolder(""))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		s := &sandbox{folder: e.sandboxFolder(entry.Name())}
		s.PodUID = entry.Name()
		err := readJSON(filepath.Join(s.folder, sandboxFile), s)
		if err == nil && s.whole() {
			e.sandboxes[s.PodUID] = s
			continue
		}
		e.logger.Info("sandbox is not whole, removing it", "pod", s.PodUID, "err", err)
		if s.Cgroup == "" {
			s.Cgroup = path.Join(e.cgroups.root, "pod"+s.PodUID)
		}
		if s.ShimAddress == "" && !e.config.SystemShim {
			s.ShimAddress = e.shimAddress(s.PodUID)
		}
		if err := e.destroySandbox(ctx, s); err != nil {
			return fmt.Errorf("remove the rest of sandbox %s: %w", s.PodUID, err)
		}
	}
	return nil
}

// whole reports whether the namespaces are still there.
func (s *sandbox) whole() bool {
	for _, name := range []string{pinNet, pinUTS} {
		if !s.HostNetwork && !pinned(filepath.Join(s.folder, name)) {
			return false
		}
	}
	return s.HostIPC || pinned(filepath.Join(s.folder, pinIPC))
}

// writeJSON makes a file appear whole or not at all.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return diskError(err)
	}
	return diskError(os.Rename(temporary, path))
}

// readJSON returns fs.ErrNotExist when there is no file.
func readJSON(path string, value any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
