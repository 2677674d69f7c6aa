package volumes

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLocalVolumesAreMadeOnceAndDeletedWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	l, err := NewLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	path, err := l.Make("pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "data"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := l.Make("pvc-1"); err != nil || again != path {
		t.Errorf("made again: %q, %v", again, err)
	}
	if text, err := os.ReadFile(filepath.Join(path, "data")); err != nil || string(text) != "kept" {
		t.Errorf("making it again has changed it: %q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if !l.Has("pvc-1") || l.Has("pvc-2") {
		t.Error("what is there is not told")
	}
	if err := l.Remove("pvc-1"); err != nil || l.Has("pvc-1") {
		t.Errorf("removing: %v", err)
	}
	if err := l.Remove("pvc-1"); err != nil {
		t.Errorf("removing it again: %v", err)
	}
	// A deletion that was interrupted is finished by the next process.
	if err := os.MkdirAll(filepath.Join(dir, doomed+"pvc-3", "much"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := NewLocal(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../x", doomed + "x"} {
		if _, err := l.Make(name); err == nil {
			t.Errorf("a volume named %q was made", name)
		}
		if err := l.Remove(name); err == nil {
			t.Errorf("a volume named %q was removed", name)
		}
	}
}
