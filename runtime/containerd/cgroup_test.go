//go:build linux

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestMemoryRoom asks the kernel: of the limits around the pods the smallest counts, whether their own cgroup is there yet or not.
func TestMemoryRoom(t *testing.T) {
	outer := fmt.Sprintf("/shoal-room-%d", os.Getpid())
	tree, err := openCgroups(outer + "/peer/pods")
	if err != nil {
		t.Fatal(err)
	}
	top, file := filepath.Join(cgroupMount, "memory"), "memory.limit_in_bytes"
	if tree.unified {
		top, file = cgroupMount, "memory.max"
	}
	t.Cleanup(func() {
		if err := tree.removeRoot(); err != nil {
			t.Error(err)
		}
	})
	machine, err := tree.memoryRoom()
	if err != nil {
		t.Fatal(err)
	}
	limit := func(cgroup, bytes string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(top, cgroup), 0o755); err != nil {
			t.Fatal(err)
		}
		for parent := filepath.Dir(cgroup); tree.unified; parent = filepath.Dir(parent) {
			if err := os.WriteFile(filepath.Join(top, parent, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
				t.Fatal(err)
			}
			if parent == "/" {
				break
			}
		}
		if err := os.WriteFile(filepath.Join(top, cgroup, file), []byte(bytes), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		cgroup, bytes string
		want          uint64
	}{
		{outer, "314572800", 300 << 20}, {outer + "/peer", "209715200", 200 << 20}, {outer + "/peer/pods", "262144000", 200 << 20}, {outer + "/peer", "-1", 250 << 20},
	} {
		if tree.unified && step.bytes == "-1" {
			step.bytes = "max"
		}
		limit(step.cgroup, step.bytes)
		room, err := tree.memoryRoom()
		if err != nil || room.Limit != step.want || room.Available > room.Limit || room.Available < room.Limit-1<<20 {
			t.Errorf("with %s bytes for %s: %+v, %v; without any limit %+v", step.bytes, step.cgroup, room, err, machine)
		}
	}
}
