package volumes

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
)

// checkHostPath makes sure that a host path is what its type says, or makes it so.
// https://kubernetes.io/docs/concepts/storage/volumes/#hostpath
func checkHostPath(v *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if v.Type != nil {
		kind = *v.Type
	}
	mode, exists, err := fileKind(v.Path)
	if err != nil {
		return err
	}
	if !exists {
		switch kind {
		case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(v.Path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(filepath.Clean(v.Path), os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	want := map[corev1.HostPathType]struct {
		ok   bool
		text string
	}{
		corev1.HostPathUnset:             {true, ""},
		corev1.HostPathDirectoryOrCreate: {mode.IsDir(), "a directory"},
		corev1.HostPathDirectory:         {mode.IsDir(), "a directory"},
		corev1.HostPathFileOrCreate:      {mode.IsRegular(), "a file"},
		corev1.HostPathFile:              {mode.IsRegular(), "a file"},
		corev1.HostPathSocket:            {mode&fs.ModeSocket != 0, "a socket"},
		corev1.HostPathCharDev:           {mode&fs.ModeCharDevice != 0, "a character device"},
		corev1.HostPathBlockDev:          {mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "a block device"},
	}[kind]
	if !exists || !want.ok {
		return fmt.Errorf("hostPath type check failed: %s is not %s", v.Path, want.text)
	}
	return nil
}
