package stats

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/runtime/pods"
)

// Below these the node is under pressure: the kubelet's default hard eviction thresholds.
// https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#hard-eviction-thresholds
const (
	minMemory     = 100 << 20 // bytes available
	minNodeDisk   = 0.10
	minNodeInodes = 0.05
	minImageDisk  = 0.15
	minPIDs       = 0.05
)

// Pressure is what the node is short of, and whether its runtime answers.
type Pressure struct {
	Memory, Disk, PIDs bool
	Runtime            error // nil: ready
}

// Pressure measures now.
func (n *Node) Pressure(ctx context.Context) (Pressure, error) {
	var p Pressure
	m, err := n.memory()
	if err != nil {
		return p, err
	}
	p.Memory = m.available < minMemory
	d, err := statfs(n.cfg.DataDir)
	if err != nil {
		return p, err
	}
	p.Disk = below(d.available, d.capacity, minNodeDisk) || below(d.inodesFree, d.inodes, minNodeInodes)
	info, err := n.cfg.Engine.Info(ctx)
	p.Runtime = err
	if err == nil && info.ImageRoot != "" {
		if d, err := statfs(info.ImageRoot); err == nil {
			p.Disk = p.Disk || below(d.available, d.capacity, minImageDisk)
		}
	}
	used, most := pids(n.cfg.Proc)
	p.PIDs = most > 0 && below(uint64(max(0, most-used)), uint64(most), minPIDs)
	return p, nil
}

// ImageDisk is how many bytes are available on the disk with the images, and how many it has in all.
func (n *Node) ImageDisk(ctx context.Context) (available, capacity uint64, err error) {
	info, err := n.cfg.Engine.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	d, err := statfs(info.ImageRoot)
	return d.available, d.capacity, err
}

// below reports whether a part is less than a share of the whole. File systems without inode counts have none to run out of.
func below(part, whole uint64, share float64) bool {
	return whole > 0 && float64(part) < share*float64(whole)
}

// pids counts processes and how many there may be.
func pids(proc string) (used, most int64) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, 0
	}
	for _, e := range entries {
		if name := e.Name(); name[0] >= '1' && name[0] <= '9' {
			used++
		}
	}
	most, err = strconv.ParseInt(readText(filepath.Join(proc, "sys/kernel/pid_max")), 10, 64)
	if err != nil {
		return used, 0
	}
	return used, most
}

// Conditions are the Node object's conditions. Times of those in old whose status did not change are kept; lastHeartbeatTime is now.
func Conditions(p Pressure, old []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	pressure := func(kind corev1.NodeConditionType, on bool, yes, no, messageYes, messageNo string) corev1.NodeCondition {
		if on {
			return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: yes, Message: messageYes}
		}
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: no, Message: messageNo}
	}
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if p.Runtime != nil {
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", fmt.Sprintf("container runtime is down: %v", p.Runtime)
	}
	out := []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, p.Memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "kubelet has insufficient memory available", "kubelet has sufficient memory available"),
		pressure(corev1.NodeDiskPressure, p.Disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "kubelet has disk pressure", "kubelet has no disk pressure"),
		pressure(corev1.NodePIDPressure, p.PIDs, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "kubelet has insufficient PID available", "kubelet has sufficient PID available"),
		ready,
	}
	for i := range out {
		c := &out[i]
		c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
		for _, o := range old {
			if o.Type == c.Type && o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	return out
}

// largest turns the largest images into what a Node object shows.
func largest(images []pods.Image, most int) []corev1.ContainerImage {
	images = slices.Clone(images)
	slices.SortStableFunc(images, func(a, b pods.Image) int { return cmp.Compare(b.Size, a.Size) })
	var out []corev1.ContainerImage
	for _, i := range images[:min(most, len(images))] {
		out = append(out, corev1.ContainerImage{Names: slices.Concat(i.Digests, i.Names), SizeBytes: i.Size})
	}
	return out
}
