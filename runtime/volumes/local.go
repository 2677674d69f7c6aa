package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Local makes folders of this node that live longer than any pod: persistent volumes of kind local. Their capacity is not enforced.
type Local struct {
	dir string
}

// doomed marks folders that are being deleted, which may take time and be interrupted.
const doomed = ".deleted-"

// NewLocal keeps its folders in dir, and finishes deletions that a predecessor began.
func NewLocal(dir string) (*Local, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("local volumes: %q is not an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("local volumes: %w", err)
	}
	l := &Local{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("local volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), doomed) {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("local volumes: %w", err)
			}
		}
	}
	return l, nil
}

// Path of a volume's folder, whether it is there or not. The name must be that of an API object.
func (l *Local) Path(name string) (string, error) {
	if name == "" || filepath.Base(name) != name || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("local volumes: %q cannot be the name of a volume", name)
	}
	return filepath.Join(l.dir, name), nil
}

// Make makes a volume's folder, writable for any user as its consumers may run as any; one that is there already stays as it is.
func (l *Local) Make(name string) (string, error) {
	path, err := l.Path(name)
	if err != nil {
		return "", err
	}
	return path, makeDir(path, 0o777)
}

// Has tells whether a volume's folder is there.
func (l *Local) Has(name string) bool {
	path, err := l.Path(name)
	if err != nil {
		return false
	}
	_, err = os.Lstat(path)
	return err == nil
}

// Remove deletes a volume's folder and what is in it. It is gone at once under its name, also if deleting is interrupted.
func (l *Local) Remove(name string) error {
	path, err := l.Path(name)
	if err != nil {
		return err
	}
	grave := filepath.Join(l.dir, doomed+name)
	if err := os.Rename(path, grave); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("local volumes: %w", err)
	}
	return removeTree(grave)
}
