package stats

import (
	"context"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"shoal/runtime/pods"
)

// cpuSample is what a processor-time counter said at a moment; two of them make a rate.
type cpuSample struct {
	at      time.Time
	nanos   uint64
	rate    uint64 // nanocores over the last interval
	hasRate bool
}

// minInterval is the shortest time that a rate is measured over.
const minInterval = time.Second

// rate returns nanocores since the sample before, nil for the first one.
func (n *Node) rate(key string, at time.Time, nanos uint64) *uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	before, known := n.samples[key]
	switch passed := at.Sub(before.at); {
	case !known || nanos < before.nanos:
		n.samples[key] = cpuSample{at: at, nanos: nanos}
		return nil
	case passed >= minInterval:
		before = cpuSample{at: at, nanos: nanos, rate: uint64(float64(nanos-before.nanos) / passed.Seconds()), hasRate: true}
		n.samples[key] = before
	}
	if !before.hasRate {
		return nil
	}
	return &before.rate
}

// forget drops samples of what was not seen for long.
func (n *Node) forget(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, s := range n.samples {
		if now.Sub(s.at) > time.Hour {
			delete(n.samples, key)
		}
	}
}

// Summary is the answer to /stats/summary. Rates are over the time since the summary before.
func (n *Node) Summary(ctx context.Context) (*statsv1alpha1.Summary, error) {
	node, err := n.nodeStats(ctx)
	if err != nil {
		return nil, err
	}
	usage, err := n.cfg.Engine.Stats(ctx)
	if err != nil {
		return nil, err
	}
	byUID := map[string]*pods.PodStats{}
	for i := range usage {
		byUID[usage[i].PodUID] = &usage[i]
	}
	out := &statsv1alpha1.Summary{Node: node, Pods: []statsv1alpha1.PodStats{}}
	for _, pod := range n.cfg.Pods() {
		if u := byUID[string(pod.UID)]; u != nil {
			out.Pods = append(out.Pods, n.podStats(pod, u))
		}
	}
	n.forget(time.Now())
	return out, nil
}

func (n *Node) nodeStats(ctx context.Context) (statsv1alpha1.NodeStats, error) {
	now := time.Now()
	at := metav1.NewTime(now)
	out := statsv1alpha1.NodeStats{NodeName: n.cfg.NodeName, StartTime: metav1.NewTime(bootTime(n.cfg.Proc))}
	nanos, err := cpuNanos(n.cfg.Proc)
	if err != nil {
		return out, err
	}
	m, err := n.memory()
	if err != nil {
		return out, err
	}
	d, err := statfs(n.cfg.DataDir)
	if err != nil {
		return out, err
	}
	out.CPU = &statsv1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: &nanos, UsageNanoCores: n.rate("node", now, nanos)}
	out.Memory = &statsv1alpha1.MemoryStats{Time: at, AvailableBytes: ptr(m.total - m.workingSet()), UsageBytes: ptr(m.usage()), WorkingSetBytes: ptr(m.workingSet()), RSSBytes: ptr(m.anon)}
	out.Fs = d.stats(at)
	used, most := pids(n.cfg.Proc)
	out.Rlimit = &statsv1alpha1.RlimitStats{Time: at, MaxPID: &most, NumOfRunningProcesses: &used}
	if info, err := n.cfg.Engine.Info(ctx); err == nil && info.ImageRoot != "" {
		if d, err := statfs(info.ImageRoot); err == nil {
			image := d.stats(at)
			image.UsedBytes = ptr(info.ImageBytes)
			out.Runtime = &statsv1alpha1.RuntimeStats{ImageFs: image, ContainerFs: d.stats(at)}
		}
	}
	return out, nil
}

func (d disk) stats(at metav1.Time) *statsv1alpha1.FsStats {
	return &statsv1alpha1.FsStats{
		Time: at, AvailableBytes: ptr(d.available), CapacityBytes: ptr(d.capacity), UsedBytes: ptr(d.capacity - d.available),
		Inodes: ptr(d.inodes), InodesFree: ptr(d.inodesFree), InodesUsed: ptr(d.inodes - d.inodesFree),
	}
}

func ptr[T any](v T) *T { return &v }

func (n *Node) podStats(pod *corev1.Pod, u *pods.PodStats) statsv1alpha1.PodStats {
	out := statsv1alpha1.PodStats{
		PodRef:     statsv1alpha1.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)},
		Containers: []statsv1alpha1.ContainerStats{},
		CPU:        n.cpu("pod/"+u.PodUID, u.Usage), Memory: memoryStats(u.Usage),
		ProcessStats: &statsv1alpha1.ProcessStats{ProcessCount: ptr(u.Usage.Processes)},
	}
	if pod.Status.StartTime != nil {
		out.StartTime = *pod.Status.StartTime
	}
	at := metav1.NewTime(u.Usage.At)
	var ephemeral pods.FSUsage
	for _, c := range u.Containers {
		s := statsv1alpha1.ContainerStats{
			Name: c.Name, StartTime: startOf(pod, c.Name), CPU: n.cpu("container/"+c.ID, c.Usage), Memory: memoryStats(c.Usage), Rootfs: fsStats(c.RootFS, at),
		}
		ephemeral = sum(ephemeral, c.RootFS)
		if n.cfg.LogDir != nil {
			logs := treeUsage(filepath.Join(n.cfg.LogDir(pod), c.Name))
			s.Logs = fsStats(logs, at)
			ephemeral = sum(ephemeral, logs)
		}
		out.Containers = append(out.Containers, s)
	}
	if n.cfg.VolumeUsage != nil {
		usage := n.cfg.VolumeUsage(pod)
		for _, v := range pod.Spec.Volumes {
			if used, ok := usage[v.Name]; ok {
				out.VolumeStats = append(out.VolumeStats, statsv1alpha1.VolumeStats{Name: v.Name, FsStats: *fsStats(used, at)})
				if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault {
					ephemeral = sum(ephemeral, used)
				}
			}
		}
	}
	out.EphemeralStorage = fsStats(ephemeral, at)
	return out
}

func sum(a, b pods.FSUsage) pods.FSUsage {
	return pods.FSUsage{UsedBytes: a.UsedBytes + b.UsedBytes, InodesUsed: a.InodesUsed + b.InodesUsed}
}

func fsStats(u pods.FSUsage, at metav1.Time) *statsv1alpha1.FsStats {
	return &statsv1alpha1.FsStats{Time: at, UsedBytes: ptr(u.UsedBytes), InodesUsed: ptr(u.InodesUsed)}
}

func (n *Node) cpu(key string, u pods.Usage) *statsv1alpha1.CPUStats {
	return &statsv1alpha1.CPUStats{Time: metav1.NewTime(u.At), UsageCoreNanoSeconds: ptr(u.CPUNanos), UsageNanoCores: n.rate(key, u.At, u.CPUNanos)}
}

func memoryStats(u pods.Usage) *statsv1alpha1.MemoryStats {
	out := &statsv1alpha1.MemoryStats{
		Time: metav1.NewTime(u.At), UsageBytes: ptr(u.MemoryBytes), WorkingSetBytes: ptr(u.WorkingSetBytes), RSSBytes: ptr(u.RSSBytes),
		PageFaults: ptr(u.PageFaults), MajorPageFaults: ptr(u.MajorPageFaults),
	}
	if u.MemoryLimitBytes > u.WorkingSetBytes {
		out.AvailableBytes = ptr(u.MemoryLimitBytes - u.WorkingSetBytes)
	}
	return out
}

// startOf is when the running container of a name started.
func startOf(pod *corev1.Pod, name string) metav1.Time {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.Name == name && c.State.Running != nil {
				return c.State.Running.StartedAt
			}
		}
	}
	return metav1.Time{}
}

// treeUsage sums the files below a folder; what cannot be read counts nothing.
func treeUsage(dir string) pods.FSUsage {
	var out pods.FSUsage
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { // the function never fails
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				out.UsedBytes += uint64(st.Blocks) * 512
				out.InodesUsed++
			}
		}
		return nil
	})
	return out
}
