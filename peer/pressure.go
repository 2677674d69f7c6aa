package peer

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"shoal/runtime/pods"
)

// relieve makes room on a node under pressure: one pod at a time goes, so that the next look can tell whether it was enough. Where disk is
// short, images that nobody uses go first. The conditions, which keep new pods away, are written at once.
func (n *node) relieve(ctx context.Context) {
	pressure, err := n.stats.Pressure(ctx)
	if err != nil {
		n.log.Debug("the node's pressure could not be measured", "error", err)
		return
	}
	if !pressure.Memory && !pressure.Disk {
		return
	}
	n.statusChanged()
	if pressure.Disk && n.dropImage(ctx) {
		return
	}
	resource := corev1.ResourceMemory
	if !pressure.Memory {
		resource = corev1.ResourceEphemeralStorage
	}
	consumers, err := n.consumers(ctx, resource)
	if err != nil {
		n.log.Warn("the node is under pressure and cannot tell what its pods use", "error", err)
		return
	}
	for _, c := range pods.RankForEviction(consumers, resource) {
		if n.agent.Evict(c.Pod.UID, pods.EvictionMessage(c, resource)) {
			n.log.Warn("a pod is evicted, the node is under pressure", "pod", c.Pod.Namespace+"/"+c.Pod.Name, "resource", resource)
			return
		}
	}
}

// collectPause is how long the disk is given to show what a removal of images has freed: the daemon deletes their content in its own time.
const collectPause = time.Minute

// collectImages removes unused images when the disk with the images fills, those that have not been used for longest first.
func (n *node) collectImages(ctx context.Context, now time.Time) {
	images, err := n.engine.ListImages(ctx)
	if err != nil {
		return // relieve says so when it matters
	}
	bound := n.bound.all()
	n.imageUse.Note(images, bound, now)
	available, capacity, err := n.stats.ImageDisk(ctx)
	if err != nil || now.Sub(n.collected) < collectPause {
		return
	}
	excess := n.peer.cfg.Images.Excess(available, capacity)
	if excess <= 0 {
		return
	}
	n.collected = now
	var removed int64
	for _, image := range n.imageUse.Collect(images, bound, excess, now) {
		if err := n.engine.RemoveImage(ctx, image.ID); err != nil {
			n.log.Warn("an unused image could not be removed", "image", image.Names, "error", err)
			continue
		}
		removed += image.Size
		n.log.Info("an unused image was removed", "image", image.Names, "size", image.Size)
	}
	if removed < excess {
		n.log.Warn("the disk with the images is filling, and no more unused images are there to remove",
			"used", fmt.Sprintf("%d %%", 100-available*100/max(capacity, 1)), "wanted", excess, "removed", removed)
	}
}

// dropImage removes the largest image that no pod here uses.
func (n *node) dropImage(ctx context.Context) bool {
	images, err := n.engine.ListImages(ctx)
	if err != nil {
		n.log.Warn("images could not be listed for removal", "error", err)
		return false
	}
	for _, image := range pods.UnusedImages(images, n.bound.all()) {
		if err := n.engine.RemoveImage(ctx, image.ID); err != nil {
			n.log.Warn("an unused image could not be removed", "image", image.Names, "error", err)
			continue
		}
		n.log.Info("an unused image was removed, disk is short", "image", image.Names, "size", image.Size)
		return true
	}
	return false
}

// consumers are what pods use of memory or of disk, measured now: what a node is short of was taken by who began last, more often than not.
func (n *node) consumers(ctx context.Context, resource corev1.ResourceName) ([]pods.Consumer, error) {
	used := map[string]map[string]int64{} // by pod's UID and container
	if resource == corev1.ResourceMemory {
		usage, err := n.engine.Usage(ctx)
		if err != nil {
			return nil, err
		}
		for _, pod := range usage {
			used[pod.PodUID] = map[string]int64{}
			for _, c := range pod.Containers {
				used[pod.PodUID][c.Name] = int64(c.Usage.WorkingSetBytes)
			}
		}
	} else {
		summary, err := n.stats.Summary(ctx)
		if err != nil {
			return nil, err
		}
		for i := range summary.Pods {
			used[summary.Pods[i].PodRef.UID] = diskOf(&summary.Pods[i])
		}
	}
	var consumers []pods.Consumer
	for _, pod := range n.bound.all() {
		if of := used[string(pod.UID)]; of != nil {
			consumers = append(consumers, pods.Consumer{Pod: pod, Containers: of})
		}
	}
	return consumers, nil
}

// diskOf is what a pod's containers have written; emptyDirs count under no container's name.
func diskOf(pod *statsv1alpha1.PodStats) map[string]int64 {
	of := map[string]int64{}
	var sum int64
	for _, c := range pod.Containers {
		for _, fs := range []*statsv1alpha1.FsStats{c.Rootfs, c.Logs} {
			if fs != nil && fs.UsedBytes != nil {
				of[c.Name] += int64(*fs.UsedBytes)
				sum += int64(*fs.UsedBytes)
			}
		}
	}
	if all := pod.EphemeralStorage; all != nil && all.UsedBytes != nil {
		of[""] = max(0, int64(*all.UsedBytes)-sum)
	}
	return of
}
