package peer

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestANearlyFullDiskEndsThePeerInOrder(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("shoal-test", dir, "tmpfs", 0, "size=80m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{DataDir: dir}
	if err := cfg.reserve(); err != nil {
		t.Fatalf("with 48 MiB beside the reserve: %v", err)
	}
	p := &Peer{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	ended := make(chan error, 1)
	go func() { ended <- p.watchDisk(t.Context()) }()
	select {
	case err := <-ended:
		t.Fatalf("with room left the watch ended: %v", err)
	case <-time.After(3 * diskInterval):
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the watch ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the watch does not see that 8 MiB are left")
	}
	if _, err := os.Stat(filepath.Join(dir, reserveName)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the reserve was not given up: %v", err)
	}
	if err := cfg.reserve(); err == nil {
		t.Fatal("with 40 MiB free, 32 of them wanted aside, the peer would start again")
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	if err := cfg.reserve(); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}
