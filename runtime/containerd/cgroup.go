//go:build linux

package containerd

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupTree is the part of the cgroup file systems below one root.
type cgroupTree struct {
	root        string   // "/shoal/<peer>/pods"
	unified     bool     // cgroup v2 owns the controllers
	hierarchies []string // mount points: one with v2, one per controller (set) with v1
	swapLimit   bool     // swap can be limited
}

// openCgroups finds out which cgroup version owns the controllers. A mounted
// but empty cgroup2 beside v1 ("hybrid") counts as v1: limits in it would fail.
func openCgroups(root string) (*cgroupTree, error) {
	t := &cgroupTree{root: filepath.Clean(root)}
	var info unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &info); err != nil {
		return nil, fmt.Errorf("cgroups are not mounted at %s: %w", cgroupMount, err)
	}
	if info.Type == unix.CGROUP2_SUPER_MAGIC {
		controllers, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cgroup v2: %w", err)
		}
		if !slices.Contains(strings.Fields(string(controllers)), "memory") {
			return nil, errors.New("cgroup v2 is mounted without the memory controller; enable it for this process's cgroup")
		}
		t.unified, t.swapLimit, t.hierarchies = true, true, []string{cgroupMount}
		return t, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		path := filepath.Join(cgroupMount, entry.Name())
		// An empty v2 mount beside v1 counts too: runtimes make folders in it.
		if err := unix.Statfs(path, &info); err != nil || (info.Type != unix.CGROUP_SUPER_MAGIC && info.Type != unix.CGROUP2_SUPER_MAGIC) {
			continue
		}
		if entry.Type()&fs.ModeSymlink == 0 {
			t.hierarchies = append(t.hierarchies, path)
		}
	}
	if !slices.Contains(t.hierarchies, filepath.Join(cgroupMount, "memory")) {
		return nil, fmt.Errorf("the memory cgroup is not mounted below %s", cgroupMount)
	}
	_, err = os.Stat(filepath.Join(cgroupMount, "memory", "memory.memsw.limit_in_bytes"))
	t.swapLimit = err == nil
	return t, nil
}

// limit makes a pod's cgroup and gives it limits. Without limits nothing is
// done: the runtime makes the parents of a container's cgroup by itself.
func (t *cgroupTree) limit(path string, r pods.Resources) error {
	if r.CPUShares == 0 && r.CPUQuota == 0 && r.Memory == 0 && r.PidsLimit == 0 {
		return nil
	}
	resources := &cgroups.Resources{
		CpuShares:   r.CPUShares,
		CpuQuota:    r.CPUQuota,
		CpuPeriod:   r.CPUPeriod,
		Memory:      r.Memory,
		SkipDevices: true,
	}
	if r.PidsLimit != 0 {
		resources.PidsLimit = &r.PidsLimit
	}
	if t.unified {
		resources.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CPUShares)
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: resources})
	if err != nil {
		return fmt.Errorf("pod cgroup: %w", err)
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("pod cgroup: %w", err)
	}
	if err := m.Set(resources); err != nil {
		return fmt.Errorf("pod cgroup limits: %w", err)
	}
	return nil
}

// folders are a cgroup in every hierarchy.
func (t *cgroupTree) folders(path string) []string {
	var folders []string
	for _, hierarchy := range t.hierarchies {
		folders = append(folders, filepath.Join(hierarchy, path))
	}
	return folders
}

// remove deletes a cgroup with all below it. One that vanished is fine; one with
// processes in it is an error. Parents stay: a container of another pod may be
// about to be made below them.
func (t *cgroupTree) remove(path string) error {
	var failed []error
	for _, folder := range t.folders(path) {
		failed = append(failed, removeCgroup(folder))
	}
	return errors.Join(failed...)
}

// removeRoot deletes the root with all below it and those parents of it that
// are empty then. Only for when no more containers will be made.
func (t *cgroupTree) removeRoot() error {
	if err := t.remove(t.root); err != nil {
		return err
	}
	for _, hierarchy := range t.hierarchies {
		for parent := filepath.Dir(t.root); parent != "/"; parent = filepath.Dir(parent) {
			// The first that is in use ends it.
			if unix.Rmdir(filepath.Join(hierarchy, parent)) != nil {
				break
			}
		}
	}
	return nil
}

// removeCgroup deletes depth first. The kernel needs a moment after the last
// process of a cgroup has died, so a busy one is tried again.
func removeCgroup(path string) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := unix.Rmdir(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		entries, readErr := os.ReadDir(path)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
			return readErr
		}
		below := false
		for _, entry := range entries {
			if entry.IsDir() {
				below = true
				if err := removeCgroup(filepath.Join(path, entry.Name())); err != nil {
					return err
				}
			}
		}
		if below {
			continue
		}
		if !errors.Is(err, unix.EBUSY) || pause > 500*time.Millisecond {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		time.Sleep(pause)
	}
}

// killAll sends SIGKILL to every process in a cgroup and below it.
func (t *cgroupTree) killAll(path string) error {
	hierarchy := filepath.Join(cgroupMount, "memory")
	if t.unified {
		hierarchy = cgroupMount
	}
	pids, err := cgroups.GetAllPids(filepath.Join(hierarchy, path))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("processes of cgroup %s: %w", path, err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// usage reads what a cgroup consumes at present.
func (t *cgroupTree) usage(path string) (pods.Usage, error) {
	if t.unified {
		return usageV2(filepath.Join(cgroupMount, path))
	}
	return usageV1(path)
}

func usageV1(path string) (pods.Usage, error) {
	memory := filepath.Join(cgroupMount, "memory", path)
	u := pods.Usage{At: time.Now()}
	var err error
	if u.MemoryBytes, err = readUint(filepath.Join(memory, "memory.usage_in_bytes")); err != nil {
		return u, err
	}
	if u.CPUNanos, err = readUint(filepath.Join(cgroupMount, "cpuacct", path, "cpuacct.usage")); err != nil {
		return u, err
	}
	stat, err := readStat(filepath.Join(memory, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSetBytes = u.MemoryBytes - min(u.MemoryBytes, stat["total_inactive_file"])
	u.RSSBytes = stat["total_rss"]
	u.PageFaults, u.MajorPageFaults = stat["total_pgfault"], stat["total_pgmajfault"]
	u.MemoryLimitBytes = stat["hierarchical_memory_limit"]
	if u.MemoryLimitBytes > 1<<62 {
		u.MemoryLimitBytes = 0 // v1 writes "no limit" as the largest multiple of a page
	}
	if u.Processes, err = readUint(filepath.Join(cgroupMount, "pids", path, "pids.current")); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return u, err
}

func usageV2(path string) (pods.Usage, error) {
	u := pods.Usage{At: time.Now()}
	var err error
	if u.MemoryBytes, err = readUint(filepath.Join(path, "memory.current")); err != nil {
		return u, err
	}
	cpu, err := readStat(filepath.Join(path, "cpu.stat"))
	if err != nil {
		return u, err
	}
	u.CPUNanos = cpu["usage_usec"] * 1000
	stat, err := readStat(filepath.Join(path, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSetBytes = u.MemoryBytes - min(u.MemoryBytes, stat["inactive_file"])
	u.RSSBytes = stat["anon"]
	u.PageFaults, u.MajorPageFaults = stat["pgfault"], stat["pgmajfault"]
	if u.MemoryLimitBytes, err = readLimit(filepath.Join(path, "memory.max")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return u, err
	}
	if u.Processes, err = readUint(filepath.Join(path, "pids.current")); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return u, err
}

// memoryRoom looks for limits of memory from the root upwards: an administrator, or a container that the peer runs in, may give all pods
// together less than the machine has.
func (t *cgroupTree) memoryRoom() (pods.MemoryRoom, error) {
	var room pods.MemoryRoom
	for path := t.root; ; path = filepath.Dir(path) {
		limit, used, err := t.memoryLimit(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // before the first pod there is no root, and v2's own root has no limit
			return room, fmt.Errorf("memory limit of cgroup %s: %w", path, err)
		}
		if err == nil && limit > 0 {
			available := limit - min(limit, used)
			if room.Limit == 0 {
				room = pods.MemoryRoom{Limit: limit, Available: available}
			}
			room = pods.MemoryRoom{Limit: min(room.Limit, limit), Available: min(room.Available, available)}
		}
		if path == "/" {
			return room, nil
		}
	}
}

// memoryLimit is the limit that a cgroup itself has, 0 for none, and the working set of all that is in it.
func (t *cgroupTree) memoryLimit(path string) (limit, used uint64, err error) {
	folder, limitFile, usedFile, inactive := filepath.Join(cgroupMount, path), "memory.max", "memory.current", "inactive_file"
	if !t.unified {
		folder = filepath.Join(cgroupMount, "memory", path)
		limitFile, usedFile, inactive = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	}
	if limit, err = readLimit(filepath.Join(folder, limitFile)); err != nil || limit == 0 {
		return 0, 0, err
	}
	if used, err = readUint(filepath.Join(folder, usedFile)); err != nil {
		return 0, 0, err
	}
	stat, err := readStat(filepath.Join(folder, "memory.stat"))
	return limit, used - min(used, stat[inactive]), err
}

// readLimit reads a limit of memory; 0 is none, which v2 writes as "max" and v1 as the largest multiple of a page.
func readLimit(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(text)) == "max" {
		return 0, err
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if limit > 1<<62 {
		limit = 0
	}
	return limit, err
}

// children returns the names of the cgroups directly below path.
func (t *cgroupTree) children(path string) ([]string, error) {
	names := map[string]bool{}
	for _, hierarchy := range t.hierarchies {
		entries, err := os.ReadDir(filepath.Join(hierarchy, path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if entry.IsDir() {
				names[entry.Name()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func readUint(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// readStat reads lines of "name value".
func readStat(path string) (map[string]uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	values := map[string]uint64{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		values[name] = value
	}
	return values, lines.Err()
}
