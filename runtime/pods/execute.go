package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// refreshVolumes is the worker's own verb: bring the content of prepared volumes up to date.
const refreshVolumes Verb = "refresh-volumes"

// minStopGrace is what a container gets to stop after its preStop hook used up the grace period.
const minStopGrace = 2 * time.Second

// failure is an action's error with the reason that a waiting container shows.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// effect is what a successful action changes in the state.
type effect func(s *PodState)

// start runs an action in the background; w.mu is held.
func (w *worker) start(ctx context.Context, action Action) {
	ctx, cancel := context.WithCancel(ctx)
	w.state.InFlight[action.Key] = true
	w.cancels[action.Key] = cancel
	pod := w.withStatus()
	sandbox := w.state.Sandbox
	w.tasks.Go(func() {
		defer cancel()
		apply, err := w.do(ctx, pod, sandbox, action)
		w.ended(ctx, action, apply, err)
	})
}

// ended records how an action ended. One that was cancelled neither succeeded nor failed.
func (w *worker) ended(ctx context.Context, action Action, apply effect, err error) {
	w.update(func(s *PodState) {
		delete(s.InFlight, action.Key)
		delete(w.cancels, action.Key)
		switch {
		case err == nil:
			delete(s.Failures, action.Key)
			if apply != nil {
				apply(s)
			}
		case ctx.Err() == nil:
			f := &failure{reason: reasonCreateError, err: err}
			errors.As(err, &f)
			if action.Verb == refreshVolumes {
				w.refreshAt = time.Now().Add(retryMax)
			}
			s.Failures[action.Key] = Failure{Reason: f.reason, Message: err.Error(), At: time.Now(), Count: s.Failures[action.Key].Count + 1}
		}
	})
}

// do carries out one action. pod has the status last planned.
func (w *worker) do(ctx context.Context, pod *corev1.Pod, sandbox *Sandbox, action Action) (effect, error) {
	a := w.agent
	switch action.Verb {
	case CreateSandbox:
		return w.createSandbox(ctx, pod)
	case AttachNetwork:
		return w.attachNetwork(ctx, pod, sandbox)
	case PrepareVolumes, refreshVolumes:
		return w.prepareVolumes(ctx, pod)
	case InspectImage:
		return w.inspectImage(ctx, pod, action)
	case PullImage:
		return w.pullImage(ctx, pod, action)
	case StartContainer:
		return w.startContainer(ctx, pod, action)
	case RunPostStart:
		return w.postStart(ctx, pod, action)
	case StopContainer:
		return w.stopContainer(ctx, pod, action)
	case KillContainer:
		state, err := a.cfg.Engine.Kill(ctx, action.ID)
		return w.stopped(action.ID, state, err)
	case RemoveContainer:
		if err := a.cfg.Engine.Remove(ctx, action.ID); err != nil {
			return nil, err
		}
		return func(s *PodState) { dropContainer(s, action.ID) }, nil
	case Teardown:
		if err := a.teardown(ctx, w.uid); err != nil {
			w.warn(pod, "", "FailedKillPod", "error killing pod: "+err.Error())
			return nil, err
		}
		return func(s *PodState) { s.TornDown, s.Sandbox, s.IPs, s.Containers = true, nil, nil, nil }, nil
	case DeletePod:
		return w.deletePod(ctx, pod)
	}
	return nil, fmt.Errorf("unknown verb %q", action.Verb)
}

// deletePod deletes the object. One with finalizers stays for others to look at: it gets its final status first.
func (w *worker) deletePod(ctx context.Context, pod *corev1.Pod) (effect, error) {
	if len(pod.Finalizers) > 0 {
		if err := w.agent.cfg.Reports.Status(ctx, pod, *pod.Status.DeepCopy()); err != nil && !isGone(err) {
			return nil, err
		}
	}
	if err := w.agent.cfg.Reports.Deleted(ctx, pod); err != nil && !isGone(err) {
		return nil, err
	}
	return func(s *PodState) { s.Deleted = true }, nil
}

func (w *worker) event(pod *corev1.Pod, path, reason, message string) {
	w.agent.cfg.Reports.Event(pod, path, corev1.EventTypeNormal, reason, message)
}

func (w *worker) warn(pod *corev1.Pod, path, reason, message string) {
	w.agent.cfg.Reports.Event(pod, path, corev1.EventTypeWarning, reason, message)
}

// slot waits for one of a bounded number of slots and returns how to give it back.
func slot(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *worker) createSandbox(ctx context.Context, pod *corev1.Pod) (effect, error) {
	release, err := slot(ctx, w.agent.starts)
	if err != nil {
		return nil, err
	}
	defer release()
	sandbox, err := w.agent.cfg.Engine.CreateSandbox(ctx, sandboxSpec(pod, w.agent.cfg.DNS))
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, "", "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
		}
		return nil, err
	}
	var ips []netip.Addr
	if !pod.Spec.HostNetwork { // at once: nobody gains from planning in between
		if ips, err = w.agent.cfg.Network.Attach(ctx, pod, sandbox.NetNS); err != nil {
			ips = nil // the plan asks again, and reports
		}
	}
	return func(s *PodState) { s.Sandbox, s.IPs = &sandbox, ips }, nil
}

func (w *worker) attachNetwork(ctx context.Context, pod *corev1.Pod, sandbox *Sandbox) (effect, error) {
	ips, err := w.agent.cfg.Network.Attach(ctx, pod, sandbox.NetNS)
	if err == nil && len(ips) == 0 {
		err = errors.New("the pod network gave no address")
	}
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, "", "FailedCreatePodSandBox", "Failed to set up the pod's network: "+err.Error())
		}
		return nil, err
	}
	return func(s *PodState) { s.IPs = ips }, nil
}

func (w *worker) prepareVolumes(ctx context.Context, pod *corev1.Pod) (effect, error) {
	again, err := w.agent.cfg.Volumes.Prepare(ctx, pod)
	var evict *EvictError
	if errors.As(err, &evict) {
		return func(s *PodState) { s.Evicted = &End{Reason: "Evicted", Message: evict.Message} }, nil
	}
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, "", "FailedMount", err.Error())
		}
		return nil, err
	}
	return func(s *PodState) { s.Volumes, w.refreshAt = true, again }, nil
}

// startContainer makes and starts one attempt of a container.
func (w *worker) startContainer(ctx context.Context, pod *corev1.Pod, action Action) (effect, error) {
	a, path := w.agent, fieldPath(pod, action.Container)
	c := findContainer(pod, action.Container)
	if err := w.etcFiles(pod); err != nil {
		return nil, &failure{reasonCreateError, err}
	}
	spec, err := a.containerSpec(ctx, pod, c, action.Attempt, action.Image)
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, path, "Failed", "Error: "+err.Error())
		}
		return nil, &failure{reasonConfigError, err}
	}
	w.joinTarget(pod, &spec)
	release, err := slot(ctx, a.starts)
	if err != nil {
		return nil, err
	}
	defer release()
	removeOldLogs(a.paths, pod, c.Name, action.Attempt)
	state, err := a.cfg.Engine.Create(ctx, spec)
	if errors.Is(err, ErrImageNotFound) {
		return func(s *PodState) { delete(s.Images, c.Image) }, nil // it was removed since: look again
	}
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, path, "Failed", "Error: "+err.Error())
		}
		return nil, &failure{reasonCreateError, err}
	}
	w.event(pod, path, "Created", "Container created")
	state, err = a.cfg.Engine.Start(ctx, state.ID)
	if err != nil {
		if ctx.Err() == nil {
			w.warn(pod, path, "Failed", "Error: "+err.Error())
		}
		if state.Status == StatusExited {
			w.observe(state) // a failed attempt, with its back-off
			return nil, nil
		}
		return nil, &failure{reasonRunError, err}
	}
	w.event(pod, path, "Started", "Container started")
	w.observe(state)
	return nil, nil
}

// etcFiles writes the pod's files in /etc.
func (w *worker) etcFiles(pod *corev1.Pod) error {
	w.mu.Lock()
	ips := w.state.IPs
	w.mu.Unlock()
	w.etc.Lock()
	defer w.etc.Unlock()
	return writeEtc(w.agent.paths.etc(string(w.uid)), pod, ips, w.agent.cfg.DNS)
}

// joinTarget lets an ephemeral container see the processes of the one it was aimed at.
func (w *worker) joinTarget(pod *corev1.Pod, spec *ContainerSpec) {
	for _, e := range pod.Spec.EphemeralContainers {
		if e.Name == spec.Name && e.TargetContainerName != "" {
			if target, err := w.container(e.TargetContainerName); err == nil {
				spec.TargetContainerID = target.ID
			}
		}
	}
}

// removeOldLogs keeps the logs of the attempt before the one that begins, and of none older.
func removeOldLogs(p paths, pod *corev1.Pod, container string, attempt int) {
	if attempt < 2 {
		return
	}
	old, err := filepath.Glob(p.log(pod, container, attempt-2) + "*")
	if err != nil {
		return // only for a malformed pattern
	}
	for _, path := range append(old, p.message(string(pod.UID), container, attempt-2)) {
		_ = os.Remove(path) // swept with the pod at the latest
	}
}

func (w *worker) postStart(ctx context.Context, pod *corev1.Pod, action Action) (effect, error) {
	c := findContainer(pod, action.Container)
	if err := w.agent.prober.hook(ctx, pod, action.ID, c, c.Lifecycle.PostStart); err != nil {
		if ctx.Err() == nil {
			w.warn(pod, fieldPath(pod, c.Name), "FailedPostStartHook", "PostStartHook failed: "+err.Error())
		}
		return nil, &failure{reasonPostStartFailed, err}
	}
	return func(s *PodState) { s.Hooked[action.ID] = true }, nil
}

// stopContainer runs the preStop hook and stops the container, both within the grace period.
func (w *worker) stopContainer(ctx context.Context, pod *corev1.Pod, action Action) (effect, error) {
	w.event(pod, fieldPath(pod, action.Container), "Killing", action.Reason)
	begun := time.Now()
	grace := action.Grace
	if c := findContainer(pod, action.Container); action.PreStop && grace > 0 && c != nil {
		hookCtx, cancel := context.WithTimeout(ctx, grace)
		if err := w.agent.prober.hook(hookCtx, pod, action.ID, c, c.Lifecycle.PreStop); err != nil && ctx.Err() == nil {
			w.warn(pod, fieldPath(pod, c.Name), "FailedPreStopHook", "PreStopHook failed: "+err.Error())
		}
		cancel()
		grace = max(minStopGrace, grace-time.Since(begun))
	}
	state, err := w.agent.cfg.Engine.Stop(ctx, action.ID, grace)
	return w.stopped(action.ID, state, err)
}

func (w *worker) stopped(id string, state ContainerState, err error) (effect, error) {
	switch {
	case errors.Is(err, ErrNotFound):
		return func(s *PodState) { dropContainer(s, id) }, nil
	case err != nil:
		return nil, err
	}
	w.observe(state)
	return nil, nil
}

// dropContainer forgets a container that is not there any more.
func dropContainer(s *PodState, id string) {
	out := make([]ContainerState, 0, len(s.Containers))
	for _, c := range s.Containers {
		if c.ID != id {
			out = append(out, c)
		}
	}
	s.Containers = out
	delete(s.Probes, id)
	delete(s.Hooked, id)
	delete(s.Messages, id)
	delete(s.Failures, Key{Verb: RunPostStart, Subject: id})
}

// CurrentLog is the attempt whose log a status stands for; ok is false when the container never ran. With previous it is the one before.
func CurrentLog(s *corev1.ContainerStatus, previous bool) (attempt int, ok bool) {
	attempt = int(s.RestartCount)
	ran := s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil
	if previous && s.State.Waiting == nil {
		return attempt - 1, attempt > 0
	}
	return attempt, ran
}
