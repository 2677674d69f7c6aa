package shimbin

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func compress(t *testing.T, data []byte) []byte {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return encoder.EncodeAll(data, nil)
}

func TestExtractRepairsADamagedFile(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "bin")
	program := []byte("#!/bin/sh\nexit 0\n")
	packed := compress(t, program)

	path, err := extract(bytes.NewReader(packed), "tool", folder)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if first.Mode()&0o100 == 0 {
		t.Errorf("mode %v is not executable", first.Mode())
	}
	if again, err := extract(bytes.NewReader(packed), "tool", folder); err != nil || again != path {
		t.Fatalf("second extraction: %q, %v; want %q", again, err, path)
	}
	if second, err := os.Stat(path); err != nil || !os.SameFile(first, second) {
		t.Errorf("an intact file was replaced")
	}

	damaged := bytes.ToUpper(program)
	if err := os.WriteFile(path, damaged, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := extract(bytes.NewReader(packed), "tool", folder); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, program) {
		t.Errorf("file after repair: %q, %v", data, err)
	}
}

func TestExtractRejectsGarbage(t *testing.T) {
	folder := t.TempDir()
	if _, err := extract(bytes.NewReader([]byte("not zstd")), "tool", folder); err == nil {
		t.Fatal("garbage was extracted")
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestFindSaysWhereItLooked(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Find("no-such-program", t.TempDir()); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
}
