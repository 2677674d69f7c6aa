package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// peerBinary is the peer under test, built once per run of the package.
var peerBinary string

func TestMain(m *testing.M) {
	status, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func testMain(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("these tests make network namespaces, disks and containers: run them as root")
	}
	dir, err := os.MkdirTemp("", "shoal-robustness-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	peerBinary = filepath.Join(dir, "peer")
	for _, command := range [][]string{
		{"bash", "hack/shim.sh"}, // it does nothing when nothing has changed
		{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", peerBinary, "./cli/peer"},
	} {
		build := exec.Command(command[0], command[1:]...)
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%v: %w\n%s", command, err, out)
		}
	}
	return m.Run(), nil
}
