package podstest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/runtime/pods"
)

// messagePathLabel is where the agent says on which host file a container's termination message is.
const messagePathLabel = "shoal.dev/message-path"

// writeMessage does what the program would do at its end; a model without that file has nothing to write to.
func writeMessage(c *container) {
	if path := c.spec.Labels[messagePathLabel]; c.program.Message != "" && path != "" {
		_ = os.WriteFile(path, []byte(c.program.Message), 0o600) // the folder is a test's and may be gone already
	}
}

func (e *Engine) running(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, have := e.containers[id]
	switch {
	case !have:
		return nil, pods.ErrNotFound
	case c.state.Status != pods.StatusRunning:
		return nil, pods.ErrNotRunning
	}
	return c, nil
}

// Exec implements pods.Streams: the Program's Exec, else it answers 0.
func (e *Engine) Exec(ctx context.Context, id string, command []string, stdio pods.Stdio) (int, error) {
	if err := e.enter(ctx, "exec "+id[:8]); err != nil {
		return 0, err
	}
	c, err := e.running(id)
	if err != nil || c.program.Exec == nil {
		return 0, err
	}
	return c.program.Exec(command, stdio)
}

// Attach implements pods.Streams: it echoes until the container ends.
func (e *Engine) Attach(ctx context.Context, id string, stdio pods.Stdio) error {
	c, err := e.running(id)
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	if stdio.In != nil && stdio.Out != nil {
		go func() {
			_, err := io.Copy(stdio.Out, stdio.In)
			copied <- err
		}()
	}
	select {
	case err := <-copied:
		return err
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// DialPod implements pods.Streams.
func (e *Engine) DialPod(ctx context.Context, podUID, network, address string) (net.Conn, error) {
	if e.Dial == nil {
		return nil, errors.New("connection refused")
	}
	return e.Dial(ctx, podUID, network, address)
}

// Usage is Stats.
func (e *Engine) Usage(ctx context.Context) ([]pods.PodStats, error) { return e.Stats(ctx) }

// Stats implements pods.Engine: every container has used one millisecond of cpu per second of its life, and 1 MiB.
func (e *Engine) Stats(ctx context.Context) ([]pods.PodStats, error) {
	if err := e.enter(ctx, "stats"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	byPod := map[string]*pods.PodStats{}
	for uid := range e.sandboxes {
		byPod[uid] = &pods.PodStats{PodUID: uid, Usage: pods.Usage{At: now}}
	}
	for _, c := range e.containers {
		if p := byPod[c.spec.PodUID]; p != nil && c.state.Status == pods.StatusRunning {
			u := pods.Usage{At: now, CPUNanos: uint64(now.Sub(c.state.StartedAt) / 1000), MemoryBytes: 1 << 20, WorkingSetBytes: 1 << 20, RSSBytes: 1 << 19}
			p.Containers = append(p.Containers, pods.ContainerStats{ID: c.state.ID, Name: c.spec.Name, Usage: u, RootFS: pods.FSUsage{UsedBytes: 4096, InodesUsed: 1}})
			p.Usage.CPUNanos += u.CPUNanos
			p.Usage.MemoryBytes += u.MemoryBytes
			p.Usage.WorkingSetBytes += u.WorkingSetBytes
			p.Usage.RSSBytes += u.RSSBytes
		}
	}
	var out []pods.PodStats
	for _, p := range byPod {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b pods.PodStats) int { return strings.Compare(a.PodUID, b.PodUID) })
	return out, nil
}

// Network is a modelled pod network.
type Network struct {
	// AttachErr fails the next attachments while it returns an error.
	AttachErr func() error

	mu   sync.Mutex
	next byte
	ips  map[types.UID][]netip.Addr
}

var _ pods.Network = (*Network)(nil)

// Attach implements pods.Network.
func (n *Network) Attach(_ context.Context, pod *corev1.Pod, _ string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.AttachErr != nil {
		if err := n.AttachErr(); err != nil {
			return nil, err
		}
	}
	if n.ips == nil {
		n.ips = map[types.UID][]netip.Addr{}
	}
	if n.ips[pod.UID] == nil {
		n.next++
		n.ips[pod.UID] = []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, n.next})}
	}
	return n.ips[pod.UID], nil
}

// Detach implements pods.Network.
func (n *Network) Detach(_ context.Context, uid types.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ips, uid)
	return nil
}

// Existing implements pods.Network.
func (n *Network) Existing(context.Context) (map[types.UID][]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[types.UID][]netip.Addr{}
	for uid, ips := range n.ips {
		out[uid] = slices.Clone(ips)
	}
	return out, nil
}

// Volumes is a modelled volume manager that makes nothing.
type Volumes struct {
	// PrepareErr fails preparations while it returns an error.
	PrepareErr func(pod *corev1.Pod) error
	// Again is after what time Prepare wants to be called again; 0 for never.
	Again time.Duration

	mu       sync.Mutex
	prepared map[types.UID]bool
}

var _ pods.Volumes = (*Volumes)(nil)

// Prepare implements pods.Volumes.
func (v *Volumes) Prepare(_ context.Context, pod *corev1.Pod) (time.Time, error) {
	if v.PrepareErr != nil {
		if err := v.PrepareErr(pod); err != nil {
			return time.Time{}, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.prepared == nil {
		v.prepared = map[types.UID]bool{}
	}
	v.prepared[pod.UID] = true
	if v.Again > 0 {
		return time.Now().Add(v.Again), nil
	}
	return time.Time{}, nil
}

// Mounts implements pods.Volumes.
func (v *Volumes) Mounts(context.Context, *corev1.Pod, *corev1.Container, []pods.EnvVar) ([]pods.Mount, []pods.Device, error) {
	return nil, nil, nil
}

// Cleanup implements pods.Volumes.
func (v *Volumes) Cleanup(_ context.Context, uid types.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.prepared, uid)
	return nil
}

// Existing implements pods.Volumes.
func (v *Volumes) Existing(context.Context) ([]types.UID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []types.UID
	for uid := range v.prepared {
		out = append(out, uid)
	}
	return out, nil
}
