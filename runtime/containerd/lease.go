//go:build linux

package containerd

import (
	"fmt"
	"time"

	"shoal/runtime/containerd/fence"
	"shoal/runtime/pods"
)

// Renewed says that the peer's lease was renewed by a request begun at that
// moment (with a monotonic reading). Not called for fence.After, nothing that
// must not run twice is started; for fence.KillAfter, what runs is killed.
func (e *Engine) Renewed(at time.Time) error {
	if err := e.fence.Renewed(at); err != nil {
		return fmt.Errorf("heartbeat: %w", diskError(err))
	}
	return nil
}

// Restarting says that the peer ends and will be waited for until that moment:
// up to then, at most half a minute, what must not run twice may run.
func (e *Engine) Restarting(until time.Time) error {
	if err := e.fence.Extend(until); err != nil {
		return fmt.Errorf("heartbeat: %w", diskError(err))
	}
	return nil
}

// mayRun refuses a container of a pod that must not run twice while the lease is
// old: the pod may have been replaced already. A peer that was restarted while
// it is cut off does not know better.
func (e *Engine) mayRun(c *container) error {
	s := e.sandbox(c.PodUID)
	if s == nil || !s.Identity {
		return nil
	}
	old, err := e.fence.Overdue(fence.After)
	if err != nil {
		return fmt.Errorf("%w: heartbeat: %w", pods.ErrUnavailable, err)
	}
	if old {
		return fmt.Errorf("%w: the node's lease is not renewed, the pod may run elsewhere", pods.ErrUnavailable)
	}
	return nil
}

// fenced is what the watchdog must know of a sandbox.
func (e *Engine) fenced(s *sandbox) fence.Pod {
	pod := fence.Pod{UID: s.PodUID, Cgroups: e.cgroups.folders(s.Cgroup)}
	if s.SharedPID {
		pod.Spare = containerID(s.PodUID, pauseName, 0)
	}
	return pod
}
