package consensus_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// unpack writes a folder of testdata into a temporary one.
func unpack(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for r := tar.NewReader(zipped); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, head.Name)
		if head.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOldFolderOpens opens a folder that was written by the first format (dragonboat's own log store, transactions and snapshots
// without checksums of ours) on a host of another name.
func TestAnOldFolderOpens(t *testing.T) {
	dir := unpack(t, "folder-1.tar.gz")
	network := consensustest.NewNetwork()
	for range 2 { // and once more after this version wrote to it
		h := network.Open(t, "a", dir, func(c *consensus.Config) { c.SnapshotEntries = 50 })
		for i := range 120 {
			mustGet(t, h, 1, fmt.Sprintf("/k/%03d", i), fmt.Sprintf("value %d", i))
		}
		for i := range 20 {
			mustGet(t, h, 2, fmt.Sprintf("/k/%03d", i), fmt.Sprintf("value %d", i))
		}
		for i := range 60 {
			mustPut(t, h, 2, fmt.Sprintf("/new/%03d", i), "new")
		}
		if err := h.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARenamedHostFindsItsFolder(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	mustPut(t, h, 1, "k", "v")
	if err := h.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "raft", host), filepath.Join(dir, "raft", host+"-before")); err != nil {
		t.Fatal(err)
	}
	mustGet(t, network.Open(t, "a", dir, nil), 1, "k", "v")
}

// TestAFolderOfSeveralStepWorkersOpens has dragonboat's status say that four workers stepped the folder's groups, as they once did.
func TestAFolderOfSeveralStepWorkersOpens(t *testing.T) {
	network, dir := consensustest.NewNetwork(), t.TempDir()
	h := network.Open(t, "a", dir, nil)
	consensustest.Found(t, h)
	mustPut(t, h, 1, "k", "v")
	if err := h.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	const checksum = 8 // bytes of it, before the content
	path := filepath.Join(dir, "raft", "dragonboat.ds")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var status raftpb.RaftDataStatus
	if err := status.Unmarshal(b[checksum:]); err != nil {
		t.Fatal(err)
	}
	status.StepWorkerCount = 4
	content := raftpb.MustMarshal(&status)
	sum := md5.Sum(content)
	if err := os.WriteFile(path, append(sum[checksum:], content...), 0o600); err != nil {
		t.Fatal(err)
	}
	mustGet(t, network.Open(t, "a", dir, nil), 1, "k", "v")
}
