package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// File is one file of a volume's content.
type file struct {
	data []byte
	mode fs.FileMode
	uid  int // -1: root
}

// The names of the writer's own entries; content may not begin with "..".
const (
	dataLink    = "..data"
	dataLinkNew = "..data_tmp"
	dataPrefix  = "..v"
)

// writeContent makes the files of dir exactly content, all at once for whoever reads through dir: the files live in a folder of their own,
// the link ..data points to it, and each name in dir points into ..data. A new version is a new folder and one rename of the link. chown
// is applied to a new folder before it is shown. It reports whether anything changed.
func writeContent(dir string, content map[string]file, chown func(dir string) error) (changed bool, err error) {
	for name := range content {
		if err := checkName(name); err != nil {
			return false, err
		}
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if current != "" {
		same, err := holds(filepath.Join(dir, current), content)
		if err != nil {
			return false, err
		}
		if same {
			return false, linkNames(dir, content)
		}
	}
	next, err := os.MkdirTemp(dir, dataPrefix)
	if err != nil {
		return false, err
	}
	if err = fill(next, content); err == nil {
		err = chown(next)
	}
	if err != nil {
		return false, errors.Join(err, os.RemoveAll(next))
	}
	link := filepath.Join(dir, dataLinkNew)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(next), link); err != nil {
		return false, err
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	if err := linkNames(dir, content); err != nil {
		return true, err
	}
	return true, removeVersions(dir, filepath.Base(next))
}

// checkName refuses names that would leave the folder or meet the writer's own.
func checkName(name string) error {
	clean := filepath.Clean(name)
	if name == "" || filepath.IsAbs(name) || clean == "." || strings.HasPrefix(clean, "..") {
		return fmt.Errorf("%q is not a path inside the volume", name)
	}
	return nil
}

func fill(dir string, content map[string]file) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if f.uid >= 0 {
			if err := os.Chown(path, f.uid, -1); err != nil {
				return err
			}
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// holds reports whether dir has exactly these files with these bytes.
func holds(dir string, content map[string]file) (bool, error) {
	seen := 0
	same := true
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, known := content[name]
		if !known {
			same = false
			return fs.SkipAll
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.data) {
			same = false
			return fs.SkipAll
		}
		seen++
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return same && seen == len(content), err
}

// linkNames makes dir's entries point into ..data, one for each first path element, and removes others.
func linkNames(dir string, content map[string]file) error {
	want := map[string]bool{}
	for name := range content {
		first, _, _ := strings.Cut(filepath.Clean(name), "/")
		want[first] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), ".."):
		case want[e.Name()]:
			delete(want, e.Name())
		default:
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// removeVersions deletes all versions but one, those of an interrupted write too.
func removeVersions(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), dataPrefix) && e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
