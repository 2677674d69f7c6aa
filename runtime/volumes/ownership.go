package volumes

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// Bits that a pod's fsGroup gets.
const (
	groupRead      fs.FileMode = 0o440
	groupReadWrite fs.FileMode = 0o660
	groupEnter     fs.FileMode = 0o110
)

// setOwnership gives everything in a volume to the pod's fsGroup, new files in it too. Without an fsGroup it does nothing.
// https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods
func setOwnership(pod *corev1.Pod, dir string, readOnly bool) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return nil
	}
	group := int(*sc.FSGroup)
	bits := groupReadWrite
	if readOnly {
		bits = groupRead
	}
	if p := sc.FSGroupChangePolicy; p != nil && *p == corev1.FSGroupChangeOnRootMismatch {
		if info, err := os.Lstat(dir); err == nil && owned(info, group, bits) {
			return nil
		}
	}
	// The root is changed last, so that a walk that was interrupted is seen as not done.
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return giveToGroup(path, info, group, bits)
	})
	if err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	return giveToGroup(dir, info, group, bits)
}

func wantMode(info fs.FileInfo, bits fs.FileMode) fs.FileMode {
	mode := info.Mode() | bits
	if info.IsDir() {
		mode |= groupEnter | fs.ModeSetgid
	}
	return mode
}

// owned reports whether a folder has the group and the bits already.
func owned(info fs.FileInfo, group int, bits fs.FileMode) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Gid) == group && info.Mode() == wantMode(info, bits)
}

func giveToGroup(path string, info fs.FileInfo, group int, bits fs.FileMode) error {
	if owned(info, group, bits) {
		return nil
	}
	if err := os.Lchown(path, -1, group); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	return os.Chmod(path, wantMode(info, bits))
}
