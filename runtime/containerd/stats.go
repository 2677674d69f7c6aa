//go:build linux

package containerd

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"shoal/runtime/pods"
)

// fsUsageEvery is how long the size of a writable layer is believed: to measure
// it, containerd walks all its files.
const fsUsageEvery = 30 * time.Second

// Stats implements pods.Engine. It reads the cgroups, asks containerd only for
// the size of writable layers, and leaves out what ends meanwhile.
func (e *Engine) Stats(ctx context.Context) ([]pods.PodStats, error) {
	return e.stats(func(c *container) pods.FSUsage { return e.layerUsage(e.in(ctx), c) })
}

// Usage is Stats without the size of writable layers: nothing but a look at the cgroups.
func (e *Engine) Usage(context.Context) ([]pods.PodStats, error) {
	return e.stats(func(*container) pods.FSUsage { return pods.FSUsage{} })
}

func (e *Engine) stats(layer func(*container) pods.FSUsage) ([]pods.PodStats, error) {
	e.mu.Lock()
	byPod := map[string][]*container{}
	for _, c := range e.containers {
		if !c.Pause && c.is(pods.StatusRunning) {
			byPod[c.PodUID] = append(byPod[c.PodUID], c)
		}
	}
	var sandboxes []*sandbox
	for _, s := range e.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	e.mu.Unlock()

	var all []pods.PodStats
	for _, s := range sandboxes {
		usage, err := e.cgroups.usage(s.Cgroup)
		if gone(err) {
			continue // no container was started yet
		}
		if err != nil {
			return nil, err
		}
		stats := pods.PodStats{PodUID: s.PodUID, Usage: usage}
		for _, c := range byPod[s.PodUID] {
			usage, err := e.cgroups.usage(c.Cgroup)
			if gone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			stats.Containers = append(stats.Containers, pods.ContainerStats{ID: c.ID, Name: c.Name, Usage: usage, RootFS: layer(c)})
		}
		all = append(all, stats)
	}
	return all, nil
}

// gone reports whether a cgroup vanished before or while it was read.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// layerUsage is the last known size of a container's writable layer.
func (e *Engine) layerUsage(ctx context.Context, c *container) pods.FSUsage {
	c.mu.Lock()
	usage, at := c.rootFS, c.rootFSAt
	c.mu.Unlock()
	if time.Since(at) < fsUsageEvery {
		return usage
	}
	found, err := e.snapshots.Usage(ctx, c.ID)
	if err != nil {
		return usage
	}
	usage = pods.FSUsage{UsedBytes: uint64(found.Size), InodesUsed: uint64(found.Inodes)}
	c.mu.Lock()
	c.rootFS, c.rootFSAt = usage, time.Now()
	c.mu.Unlock()
	return usage
}
