// Package stats measures a node: its capacity, its pressure, and what it and its pods use, for the Node object, the summary API and the
// resource metrics.
package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// DefaultMaxPods is how many pods a node takes unless configured otherwise.
const DefaultMaxPods = 110

// KubeletVersion is the Kubernetes version whose kubelet API and behaviour this node has.
const KubeletVersion = "v1.37.2"

// Engine is what is needed of a container runtime.
type Engine interface {
	Stats(ctx context.Context) ([]pods.PodStats, error)
	Usage(ctx context.Context) ([]pods.PodStats, error) // Stats without the sizes of writable layers
	Info(ctx context.Context) (pods.Info, error)
	ListImages(ctx context.Context) ([]pods.Image, error)
	MemoryRoom() (pods.MemoryRoom, error)
}

// Config of a Node.
type Config struct {
	Engine   Engine
	NodeName string
	DataDir  string // on the file system that emptyDirs and logs use
	Pods     func() []*corev1.Pod
	// VolumeUsage and LogDir say what pods use on disk; optional.
	VolumeUsage func(pod *corev1.Pod) map[string]pods.FSUsage
	LogDir      func(pod *corev1.Pod) string
	MaxPods     int64               // 0 = DefaultMaxPods
	Reserved    corev1.ResourceList // kept from pods: capacity less this is allocatable; nil = DefaultReserved
	Proc, Sys   string              // roots of these file systems; default /proc and /sys
	Etc         string              // default /etc
	Logger      *slog.Logger        // nil = slog.Default()
}

// Node measures one node.
type Node struct {
	cfg      Config
	log      *slog.Logger
	capacity corev1.ResourceList
	system   corev1.NodeSystemInfo

	mu      sync.Mutex
	samples map[string]cpuSample

	useMu  sync.Mutex
	before sample // the last one, from which the next window begins
	use    Use
}

// DefaultReserved is what the peer itself needs: some memory, so that pods cannot starve it.
func DefaultReserved() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("100Mi")}
}

// New reads what does not change while the node is up.
func New(cfg Config) (*Node, error) {
	if cfg.Engine == nil || cfg.DataDir == "" || cfg.Pods == nil {
		return nil, errors.New("stats: Engine, DataDir and Pods are needed")
	}
	cfg.Proc, cfg.Sys, cfg.Etc = orDefault(cfg.Proc, "/proc"), orDefault(cfg.Sys, "/sys"), orDefault(cfg.Etc, "/etc")
	if cfg.MaxPods == 0 {
		cfg.MaxPods = DefaultMaxPods
	}
	if cfg.Reserved == nil {
		cfg.Reserved = DefaultReserved()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	n := &Node{cfg: cfg, log: cfg.Logger, samples: map[string]cpuSample{}}
	var err error
	if n.capacity, err = n.readCapacity(); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	if n.system, err = n.readSystem(); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return n, nil
}

func orDefault(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

// Capacity is what the node has.
func (n *Node) Capacity() corev1.ResourceList { return n.capacity.DeepCopy() }

// Allocatable is what pods may request in sum.
func (n *Node) Allocatable() corev1.ResourceList {
	out := n.capacity.DeepCopy()
	for name, reserved := range n.cfg.Reserved {
		if have, ok := out[name]; ok {
			have.Sub(reserved)
			if have.Sign() < 0 {
				have = resource.Quantity{}
			}
			out[name] = have
		}
	}
	return out
}

func (n *Node) readCapacity() (corev1.ResourceList, error) {
	memory, err := n.memory()
	if err != nil {
		return nil, err
	}
	disk, err := statfs(n.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	out := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(int64(memory.total), resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(n.cfg.MaxPods, resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(disk.capacity), resource.BinarySI),
	}
	for size, pages := range hugePages(n.cfg.Sys) {
		name := corev1.ResourceName(corev1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String())
		out[name] = *resource.NewQuantity(size*pages, resource.BinarySI)
	}
	return out, nil
}

// hugePages returns the number of pages by page size in bytes, for every size the kernel has.
func hugePages(sys string) map[int64]int64 {
	out := map[int64]int64{}
	dirs, err := filepath.Glob(filepath.Join(sys, "kernel/mm/hugepages/hugepages-*kB"))
	if err != nil {
		return out // only for a malformed pattern
	}
	for _, dir := range dirs {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		pages, err := strconv.ParseInt(readText(filepath.Join(dir, "nr_hugepages")), 10, 64)
		if err == nil {
			out[kb<<10] = pages
		}
	}
	return out
}

// SystemInfo is the node's kernel, operating system and identity; the runtime's version is asked for now.
func (n *Node) SystemInfo(ctx context.Context) corev1.NodeSystemInfo {
	out := n.system
	if info, err := n.cfg.Engine.Info(ctx); err == nil {
		out.ContainerRuntimeVersion = info.Name + "://" + strings.TrimPrefix(info.Version, "v")
	}
	return out
}

func (n *Node) readSystem() (corev1.NodeSystemInfo, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return corev1.NodeSystemInfo{}, fmt.Errorf("uname: %w", err)
	}
	out := corev1.NodeSystemInfo{
		MachineID:       readText(filepath.Join(n.cfg.Etc, "machine-id")),
		SystemUUID:      readText(filepath.Join(n.cfg.Sys, "class/dmi/id/product_uuid")),
		BootID:          readText(filepath.Join(n.cfg.Proc, "sys/kernel/random/boot_id")),
		KernelVersion:   unix.ByteSliceToString(u.Release[:]),
		OSImage:         osImage(n.cfg.Etc),
		KubeletVersion:  KubeletVersion,
		OperatingSystem: goruntime.GOOS,
		Architecture:    goruntime.GOARCH,
	}
	if out.SystemUUID == "" {
		out.SystemUUID = out.MachineID
	}
	return out, nil
}

func osImage(etc string) string {
	for line := range strings.Lines(readText(filepath.Join(etc, "os-release"))) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "Linux"
}

// readText is a small file's content without white space around it; "" when there is none.
func readText(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Images lists the largest images for the Node object, at most most of them.
func (n *Node) Images(ctx context.Context, most int) ([]corev1.ContainerImage, error) {
	images, err := n.cfg.Engine.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	return largest(images, most), nil
}

// memory in bytes.
type memory struct{ total, available, free, inactiveFile, anon uint64 }

// memory is the machine's, or what cgroups around the pods leave of it where that is less.
func (n *Node) memory() (memory, error) {
	m, err := readMeminfo(n.cfg.Proc)
	if err != nil {
		return m, err
	}
	room, err := n.cfg.Engine.MemoryRoom()
	if err != nil || room.Limit == 0 || room.Limit >= m.total {
		return m, err
	}
	available := min(m.available, room.Available)
	return memory{total: room.Limit, available: available, free: available, anon: min(m.anon, room.Limit-available)}, nil
}

func readMeminfo(proc string) (memory, error) {
	data, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return memory{}, err
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if v, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			values[strings.TrimSuffix(f[0], ":")] = v << 10
		}
	}
	m := memory{total: values["MemTotal"], available: values["MemAvailable"], free: values["MemFree"], inactiveFile: values["Inactive(file)"], anon: values["AnonPages"]}
	if m.total == 0 {
		return m, fmt.Errorf("%s/meminfo has no MemTotal", proc)
	}
	return m, nil
}

// usage and workingSet as the summary API means them.
func (m memory) usage() uint64 { return m.total - m.free }

func (m memory) workingSet() uint64 {
	if m.usage() < m.inactiveFile {
		return 0
	}
	return m.usage() - m.inactiveFile
}

// disk in bytes and inodes.
type disk struct{ capacity, available, inodes, inodesFree uint64 }

func statfs(path string) (disk, error) {
	var s unix.Statfs_t
	for { // of a folder that is not made yet, its nearest parent's
		err := unix.Statfs(path, &s)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || path == "/" || path == "." {
			return disk{}, fmt.Errorf("statfs %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
	block := uint64(s.Bsize)
	return disk{capacity: s.Blocks * block, available: s.Bavail * block, inodes: s.Files, inodesFree: s.Ffree}, nil
}

// cpuNanos is the processor time that the node has used since boot.
func cpuNanos(proc string) (uint64, error) {
	line, _, _ := strings.Cut(readText(filepath.Join(proc, "stat")), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("%s/stat begins with %q", proc, line)
	}
	var ticks uint64
	for i, text := range f[1:9] { // user nice system idle iowait irq softirq steal
		v, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s/stat: %w", proc, err)
		}
		if i != 3 && i != 4 {
			ticks += v
		}
	}
	const nanosPerTick = uint64(time.Second) / 100 // USER_HZ is 100 on every Linux architecture that Go supports
	return ticks * nanosPerTick, nil
}

// bootTime of the node.
func bootTime(proc string) time.Time {
	for line := range strings.Lines(readText(filepath.Join(proc, "stat"))) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			if s, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
				return time.Unix(s, 0)
			}
		}
	}
	return time.Time{}
}
