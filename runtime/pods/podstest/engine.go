// Package podstest holds modelled neighbours of pods.Agent: an Engine without a kernel, a Network and Volumes. They keep the contracts of
// the interfaces, use only the clock of package time (and so run under testing/synctest), and are what tests and simulation run on.
package podstest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"shoal/runtime/pods"
)

// Program is how a modelled container behaves.
type Program struct {
	RunFor     time.Duration // 0: until it is stopped
	ExitCode   int
	OOM        bool
	StopDelay  time.Duration // after the stop signal; longer than the grace period: it is killed
	StartErr   string        // not empty: it does not start
	CreateErr  error
	Message    string // written to the termination message file when it ends
	Exec       func(command []string, stdio pods.Stdio) (int, error)
	StopStatus int // exit code after the stop signal
}

// Engine is a modelled container runtime.
type Engine struct {
	// Program says how a container behaves; nil runs everything until it is stopped.
	Program func(spec pods.ContainerSpec) Program
	// Dial serves DialPod; nil refuses.
	Dial func(ctx context.Context, podUID, network, address string) (net.Conn, error)
	// Latency of every verb.
	Latency time.Duration
	// Removal is how much longer the removal of a sandbox takes.
	Removal time.Duration
	// Memory is what MemoryRoom returns.
	Memory pods.MemoryRoom
	// PullErr fails pulls of a reference when it returns an error.
	PullErr func(ref string) error

	mu         sync.Mutex
	events     chan pods.Event
	sandboxes  map[string]pods.Sandbox
	containers map[string]*container
	images     map[string]pods.Image
	calls      []string
	down       bool
}

type container struct {
	spec    pods.ContainerSpec
	state   pods.ContainerState
	program Program
	done    chan struct{}
	timer   *time.Timer
}

var _ pods.Engine = (*Engine)(nil)

// NewEngine returns an Engine that holds images by the given references.
func NewEngine(images ...string) *Engine {
	e := &Engine{events: make(chan pods.Event, 1024), sandboxes: map[string]pods.Sandbox{}, containers: map[string]*container{}, images: map[string]pods.Image{}}
	for _, ref := range images {
		e.images[ref] = imageOf(ref)
	}
	return e
}

// enter records a call and waits the latency. Its error is that of an Engine that does not answer.
func (e *Engine) enter(ctx context.Context, call string) error {
	e.mu.Lock()
	e.calls = append(e.calls, call)
	down, latency := e.down, e.Latency
	e.mu.Unlock()
	if latency > 0 {
		select {
		case <-time.After(latency):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if down {
		return pods.ErrUnavailable
	}
	return ctx.Err()
}

// exit ends a container; e.mu is held.
func (e *Engine) exit(c *container, code int, quiet bool) {
	if c.state.Status == pods.StatusExited {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.state.Status, c.state.ExitCode, c.state.FinishedAt, c.state.PID = pods.StatusExited, code, time.Now(), 0
	c.state.OOMKilled = c.program.OOM && code == 137
	writeMessage(c)
	close(c.done)
	if !quiet {
		e.events <- pods.Event{Kind: pods.EventExited, State: c.state}
	}
}

// Events implements pods.Engine.
func (e *Engine) Events() <-chan pods.Event { return e.events }

// List implements pods.Engine.
func (e *Engine) List(ctx context.Context) (pods.Inventory, error) {
	if err := e.enter(ctx, "list"); err != nil {
		return pods.Inventory{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out pods.Inventory
	for _, id := range slices.Sorted(maps.Keys(e.sandboxes)) {
		out.Sandboxes = append(out.Sandboxes, e.sandboxes[id])
	}
	for _, id := range slices.Sorted(maps.Keys(e.containers)) {
		out.Containers = append(out.Containers, e.containers[id].state)
	}
	return out, nil
}

// CreateSandbox implements pods.Sandboxes.
func (e *Engine) CreateSandbox(ctx context.Context, spec pods.SandboxSpec) (pods.Sandbox, error) {
	if err := e.enter(ctx, "create-sandbox "+spec.Name); err != nil {
		return pods.Sandbox{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, have := e.sandboxes[spec.PodUID]; have {
		return s, nil
	}
	s := pods.Sandbox{PodUID: spec.PodUID, Namespace: spec.Namespace, Name: spec.Name, Labels: spec.Labels, CreatedAt: time.Now()}
	if !spec.HostNetwork {
		s.NetNS = "/modelled/" + spec.PodUID
	}
	e.sandboxes[spec.PodUID] = s
	return s, nil
}

// RemoveSandbox implements pods.Sandboxes.
func (e *Engine) RemoveSandbox(ctx context.Context, podUID string) error {
	if err := e.enter(ctx, "remove-sandbox "+podUID); err != nil {
		return err
	}
	time.Sleep(e.Removal)
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, c := range e.containers {
		if c.spec.PodUID == podUID {
			if c.state.Status != pods.StatusExited {
				e.exit(c, 137, true)
			}
			delete(e.containers, id)
		}
	}
	delete(e.sandboxes, podUID)
	return nil
}

// Create implements pods.Containers.
func (e *Engine) Create(ctx context.Context, spec pods.ContainerSpec) (pods.ContainerState, error) {
	if err := e.enter(ctx, fmt.Sprintf("create %s/%s#%d", spec.PodName, spec.Name, spec.Attempt)); err != nil {
		return pods.ContainerState{}, err
	}
	program := Program{}
	if e.Program != nil {
		program = e.Program(spec)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, have := e.sandboxes[spec.PodUID]; !have {
		return pods.ContainerState{}, fmt.Errorf("sandbox of %s: %w", spec.PodName, pods.ErrNotFound)
	}
	if _, have := e.images[spec.Image]; !have {
		return pods.ContainerState{}, fmt.Errorf("%s: %w", spec.Image, pods.ErrImageNotFound)
	}
	if program.CreateErr != nil {
		return pods.ContainerState{}, program.CreateErr
	}
	id := digest(fmt.Sprintf("%s/%s/%d", spec.PodUID, spec.Name, spec.Attempt))
	if c, have := e.containers[id]; have {
		return c.state, nil
	}
	c := &container{spec: spec, program: program, done: make(chan struct{}), state: pods.ContainerState{
		ID: id, PodUID: spec.PodUID, Name: spec.Name, Attempt: spec.Attempt, Labels: spec.Labels, Image: spec.Image, ImageID: spec.ImageID,
		Status: pods.StatusCreated, CreatedAt: time.Now(), LogPath: spec.LogPath,
	}}
	e.containers[id] = c
	return c.state, nil
}

// Start implements pods.Containers.
func (e *Engine) Start(ctx context.Context, id string) (pods.ContainerState, error) {
	if err := e.enter(ctx, "start "+id[:8]); err != nil {
		return pods.ContainerState{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, have := e.containers[id]
	if !have {
		return pods.ContainerState{}, pods.ErrNotFound
	}
	if c.state.Status != pods.StatusCreated {
		return c.state, nil
	}
	for _, other := range e.containers {
		if other != c && other.spec.PodUID == c.spec.PodUID && other.spec.Name == c.spec.Name && other.state.Status == pods.StatusRunning {
			panic("podstest: a second " + c.spec.Name + " started while the first runs")
		}
	}
	c.state.StartedAt = time.Now()
	if c.program.StartErr != "" {
		c.state.Message = c.program.StartErr
		e.exit(c, 128, true)
		return c.state, fmt.Errorf("%s: %w", c.program.StartErr, pods.ErrStart)
	}
	c.state.Status, c.state.PID = pods.StatusRunning, 1000+len(e.calls)
	if c.program.RunFor > 0 {
		c.timer = time.AfterFunc(c.program.RunFor, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			code := c.program.ExitCode
			if c.program.OOM {
				code = 137
			}
			e.exit(c, code, false)
		})
	}
	return c.state, nil
}

// Stop implements pods.Containers.
func (e *Engine) Stop(ctx context.Context, id string, grace time.Duration) (pods.ContainerState, error) {
	if err := e.enter(ctx, fmt.Sprintf("stop %s %s", id[:8], grace.Truncate(time.Second))); err != nil {
		return pods.ContainerState{}, err
	}
	e.mu.Lock()
	c, have := e.containers[id]
	if !have {
		e.mu.Unlock()
		return pods.ContainerState{}, pods.ErrNotFound
	}
	wait, code := c.program.StopDelay, c.program.StopStatus
	if wait > grace || c.state.Status == pods.StatusCreated {
		wait, code = min(wait, grace), 137
	}
	done := c.done
	e.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-done:
		case <-ctx.Done():
			return pods.ContainerState{}, ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exit(c, code, false)
	return c.state, nil
}

// Kill implements pods.Containers.
func (e *Engine) Kill(ctx context.Context, id string) (pods.ContainerState, error) {
	if err := e.enter(ctx, "kill "+id[:8]); err != nil {
		return pods.ContainerState{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, have := e.containers[id]
	if !have {
		return pods.ContainerState{}, pods.ErrNotFound
	}
	e.exit(c, 137, false)
	return c.state, nil
}

// Remove implements pods.Containers.
func (e *Engine) Remove(ctx context.Context, id string) error {
	if err := e.enter(ctx, "remove "+id[:8]); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, have := e.containers[id]; have {
		e.exit(c, 137, true)
		delete(e.containers, id)
	}
	return nil
}

// Update implements pods.Containers.
func (e *Engine) Update(ctx context.Context, id string, r pods.Resources) error {
	if err := e.enter(ctx, "update "+id[:8]); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, have := e.containers[id]
	if !have {
		return pods.ErrNotFound
	}
	c.spec.Resources = r
	return nil
}

// Info implements pods.Engine.
func (e *Engine) Info(ctx context.Context) (pods.Info, error) {
	if err := e.enter(ctx, "info"); err != nil {
		return pods.Info{}, err
	}
	return pods.Info{Name: "modelled", Version: "1", ImageRoot: "/"}, nil
}

// MemoryRoom implements pods.Engine.
func (e *Engine) MemoryRoom() (pods.MemoryRoom, error) { return e.Memory, nil }
