//go:build linux

package taskshim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
)

// cgroupRoot is where the kernel's cgroup file systems are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// specCgroup reads linux.cgroupsPath from a bundle's config.json.
func specCgroup(bundle string) (string, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", err
	}
	var spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	return spec.Linux.CgroupsPath, nil
}

// oomKills returns how many processes the kernel killed in the cgroup for want
// of memory. The counter is read at the exit, because the notification that
// containerd waits for may come after it. 0 when it cannot be known.
func oomKills(cgroup string) int {
	if cgroup == "" {
		return 0
	}
	path := filepath.Join(cgroupRoot, "memory", cgroup, "memory.oom_control")
	if cgroups.Mode() == cgroups.Unified {
		path = filepath.Join(cgroupRoot, cgroup, "memory.events")
	}
	file, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			kills, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				return 0
			}
			return kills
		}
	}
	return 0
}
