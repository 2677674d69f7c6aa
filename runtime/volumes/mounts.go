package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
)

// subPathDir holds the bind mounts of subPaths, in the pod's folder on disk. No volume can have this name.
const subPathDir = ".subpaths"

// Mounts implements pods.Volumes.
func (m *Manager) Mounts(_ context.Context, pod *corev1.Pod, c *corev1.Container, env []pods.EnvVar) ([]pods.Mount, []pods.Device, error) {
	m.mu.Lock()
	sources, prepared := m.pods[pod.UID]
	m.mu.Unlock()
	if !prepared && len(c.VolumeMounts)+len(c.VolumeDevices) > 0 {
		return nil, nil, errors.New("the pod's volumes are not prepared")
	}
	var mounts []pods.Mount
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		s, have := sources[vm.Name]
		if !have || s.block {
			return nil, nil, fmt.Errorf("volumeMount %q: the pod has no such volume with a file system", vm.Name)
		}
		path, err := m.mountPath(pod.UID, c.Name, i, s, vm, env)
		if err != nil {
			return nil, nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
		}
		mounts = append(mounts, pods.Mount{
			HostPath: path, ContainerPath: vm.MountPath, ReadOnly: vm.ReadOnly || s.readOnly,
			RecursiveReadOnly: recursive(vm), Propagation: propagation(vm),
		})
	}
	var devices []pods.Device
	for _, vd := range c.VolumeDevices {
		s, have := sources[vd.Name]
		if !have || !s.block {
			return nil, nil, fmt.Errorf("volumeDevice %q: the pod has no such block volume", vd.Name)
		}
		permissions := "rwm"
		if s.readOnly {
			permissions = "r"
		}
		devices = append(devices, pods.Device{HostPath: s.path, ContainerPath: vd.DevicePath, Permissions: permissions})
	}
	return mounts, devices, nil
}

func recursive(vm *corev1.VolumeMount) bool {
	return vm.ReadOnly && vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

func propagation(vm *corev1.VolumeMount) string {
	if vm.MountPropagation == nil {
		return "private"
	}
	switch *vm.MountPropagation {
	case corev1.MountPropagationHostToContainer:
		return "rslave"
	case corev1.MountPropagationBidirectional:
		return "rshared"
	}
	return "private"
}

// mountPath is the host path to mount: the volume's, or a bind mount of the subPath in it.
func (m *Manager) mountPath(uid types.UID, container string, index int, s source, vm *corev1.VolumeMount, env []pods.EnvVar) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var err error
		if sub, err = expandStrict(vm.SubPathExpr, env); err != nil {
			return "", err
		}
	}
	if sub == "" {
		return s.path, nil
	}
	if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return "", fmt.Errorf("%q must be relative, and no part of it may be \"..\"", sub)
	}
	f, err := openSubPath(s.path, sub, s.readOnly)
	if err != nil {
		return "", err
	}
	defer f.Close()
	target := filepath.Join(m.diskRoot(), string(uid), subPathDir, container, strconv.Itoa(index))
	return target, bindFile(f, target)
}

// openSubPath opens a path inside a volume, whatever links a container may have put there: none leads out of the volume. A missing one
// is made as a folder, with the volume's own mode.
func openSubPath(root, sub string, readOnly bool) (*os.File, error) {
	f, err := securejoin.OpenInRoot(root, sub)
	if err == nil || !errors.Is(err, fs.ErrNotExist) || readOnly {
		return f, err
	}
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	made, err := securejoin.MkdirAllHandle(dir, sub, info.Mode().Perm())
	if err != nil {
		return nil, err
	}
	return made, made.Chmod(info.Mode().Perm())
}

// expandStrict is pods.Expand that refuses names it does not know.
func expandStrict(expr string, env []pods.EnvVar) (string, error) {
	values := make(map[string]string, len(env))
	for _, v := range env {
		values[v.Name] = v.Value
	}
	out := pods.Expand(expr, values)
	if strings.Contains(out, "$(") {
		return "", fmt.Errorf("subPathExpr %q names a variable that is not set", expr)
	}
	return out, nil
}
