package stats

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/runtime/pods"
)

// UseInterval is how often samples are to be taken: the usual window of a rate.
const UseInterval = 10 * time.Second

// Amount is what something uses: processor time over a window, in billionths of a core, and memory at its end, in bytes (the working set).
type Amount struct {
	CPU    uint64 `json:"cpu"`
	Memory uint64 `json:"memory"`
}

// Use is what the node and its pods use, as the metrics API tells it. At is zero before the first window is over.
type Use struct {
	At     time.Time     `json:"at"`
	Window time.Duration `json:"window"`
	Node   Amount        `json:"node"`
	Pods   []PodUse      `json:"pods"`
}

// PodUse is what the running containers of one pod use.
type PodUse struct {
	UID        string         `json:"uid"`
	At         time.Time      `json:"at"`
	Window     time.Duration  `json:"window"`
	Containers []ContainerUse `json:"containers"`
}

// ContainerUse is what one container uses.
type ContainerUse struct {
	Name string `json:"name"`
	Amount
}

// sample is the counters at a moment.
type sample struct {
	at         time.Time
	node       uint64
	containers map[string]pods.Usage // by ID
}

// Use returns the amounts of the last window.
func (n *Node) Use() Use {
	n.useMu.Lock()
	defer n.useMu.Unlock()
	return n.use
}

// SampleUse reads all counters and so ends a window, which began with the call before. Containers that began within the window count from
// their start; one whose start is not known yet waits for the next.
func (n *Node) SampleUse(ctx context.Context) error {
	now := time.Now()
	nanos, err := cpuNanos(n.cfg.Proc)
	if err != nil {
		return err
	}
	memory, err := n.memory()
	if err != nil {
		return err
	}
	usage, err := n.cfg.Engine.Usage(ctx)
	if err != nil {
		return fmt.Errorf("usage of pods: %w", err)
	}
	known := map[string]*corev1.Pod{}
	for _, pod := range n.cfg.Pods() {
		known[string(pod.UID)] = pod
	}
	n.useMu.Lock()
	defer n.useMu.Unlock()
	before := n.before
	n.before = sample{at: now, node: nanos, containers: map[string]pods.Usage{}}
	use := Use{Node: Amount{Memory: memory.workingSet()}}
	if window := now.Sub(before.at); !before.at.IsZero() && window > 0 && nanos >= before.node {
		use.At, use.Window, use.Node.CPU = now, window, rate(nanos-before.node, window)
	}
	for _, pod := range usage {
		if of := known[pod.PodUID]; of != nil {
			if p := n.podUse(of, pod, before); p != nil {
				use.Pods = append(use.Pods, *p)
			}
		}
		for _, c := range pod.Containers {
			n.before.containers[c.ID] = c.Usage
		}
	}
	n.use = use
	return nil
}

// podUse is nil as long as one of the pod's running containers has no window.
func (n *Node) podUse(pod *corev1.Pod, usage pods.PodStats, before sample) *PodUse {
	use := &PodUse{UID: string(pod.UID)}
	for _, c := range usage.Containers {
		since, from := before.containers[c.ID].At, before.containers[c.ID].CPUNanos
		if since.IsZero() || from > c.Usage.CPUNanos {
			since, from = startOf(pod, c.Name).Time, 0
		}
		window := c.Usage.At.Sub(since)
		if since.IsZero() || window < minInterval {
			return nil
		}
		use.Containers = append(use.Containers, ContainerUse{c.Name, Amount{CPU: rate(c.Usage.CPUNanos-from, window), Memory: c.Usage.WorkingSetBytes}})
		use.At, use.Window = c.Usage.At, max(use.Window, window)
	}
	if len(use.Containers) == 0 {
		return nil
	}
	return use
}

// rate is nanoseconds of processor time over a window, in billionths of a core.
func rate(nanos uint64, window time.Duration) uint64 {
	return uint64(float64(nanos) / window.Seconds())
}
