package podstest

import (
	"maps"
	"slices"

	"shoal/runtime/pods"
)

// Calls returns every verb called so far, as "verb subject".
func (e *Engine) Calls() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.calls)
}

// SetDown makes every verb fail with ErrUnavailable, or work again, with a resync.
func (e *Engine) SetDown(down bool) {
	e.mu.Lock()
	e.down = down
	e.mu.Unlock()
	if !down {
		e.events <- pods.Event{Kind: pods.EventResync}
	}
}

// Exit ends a running container from outside, as a crash would. quiet loses the event, as a runtime that was down would.
func (e *Engine) Exit(podUID, name string, code int, quiet bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.spec.PodUID == podUID && c.spec.Name == name && c.state.Status == pods.StatusRunning {
			e.exit(c, code, quiet)
			return true
		}
	}
	return false
}

// Crash forgets everything at once, as a restart of the host does.
func (e *Engine) Crash() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.state.Status == pods.StatusRunning {
			e.exit(c, 255, true)
		}
	}
	e.containers, e.sandboxes = map[string]*container{}, map[string]pods.Sandbox{}
}

// Running returns "pod/container" of everything that runs, sorted.
func (e *Engine) Running() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, c := range e.containers {
		if c.state.Status == pods.StatusRunning {
			out = append(out, c.spec.PodName+"/"+c.spec.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Empty reports whether nothing is left.
func (e *Engine) Empty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sandboxes) == 0 && len(e.containers) == 0
}

// Spec returns what a container was made from.
func (e *Engine) Spec(id string) (pods.ContainerSpec, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, have := e.containers[id]
	if !have {
		return pods.ContainerSpec{}, false
	}
	return c.spec, true
}

// ExitPod ends all containers of a pod from outside, as a watchdog does.
func (e *Engine) ExitPod(podUID string, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.spec.PodUID == podUID && c.state.Status == pods.StatusRunning {
			e.exit(c, code, false)
		}
	}
}

// RunningPods returns the UIDs of pods of which anything runs, sorted.
func (e *Engine) RunningPods() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	uids := map[string]bool{}
	for _, c := range e.containers {
		if c.state.Status == pods.StatusRunning {
			uids[c.spec.PodUID] = true
		}
	}
	return slices.Sorted(maps.Keys(uids))
}
