package pods

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Plan is the pure core of the node agent: from a pod and what is there of it to what should be done now, the status to report, the
// probes that should run, and when to look again. It is total (any state, also one left by a crashed predecessor, has an answer) and
// stable: with its actions carried out and the Record handed back, it converges to no actions.
//
// The rules are those of https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and .../init-containers, .../sidecar-containers.
func Plan(pod *corev1.Pod, state PodState, now time.Time) Decision {
	p := &planner{pod: pod, state: &state, now: now, latest: latest(state.Containers), waiting: map[string]*corev1.ContainerStateWaiting{}}
	p.out.Record = state.Record
	p.rec = &p.out.Record
	p.rec.Backoffs = cloneMap(state.Record.Backoffs)
	p.rec.BackoffNoted = cloneMap(state.Record.BackoffNoted)

	p.checkDeadline()
	switch {
	case p.over():
		p.end()
	case !state.Bound:
		p.prepare()
	case state.Fenced:
		p.stopAll(now.Add(state.FenceGrace), "fenced: this node lost its lease")
	case p.containers():
		p.out.Actions, p.out.Probes, p.waiting = nil, nil, nil // a pod that is over starts nothing any more
		p.rec.Backoffs = cloneMap(state.Record.Backoffs)
		p.end()
	default:
		p.prepare()
	}
	if !p.ending {
		p.removeOld()
	}
	p.rec.Status = p.status()
	p.out.Status = p.rec.Status
	return p.out
}

// planner is one run of Plan.
type planner struct {
	pod     *corev1.Pod
	state   *PodState
	now     time.Time
	latest  map[string]*ContainerState
	waiting map[string]*corev1.ContainerStateWaiting // why containers that should run do not, by name
	rec     *Record
	ending  bool // the pod as a whole is being ended
	stopped bool // …and no container runs any more
	out     Decision
}

func cloneMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// checkDeadline ends a pod that is to be evicted or was active for longer than it may be.
func (p *planner) checkDeadline() {
	if p.state.Evicted != nil && p.rec.End == nil {
		p.rec.End = p.state.Evicted
		p.notice("", corev1.EventTypeWarning, p.rec.End.Reason, p.rec.End.Message)
	}
	limit := p.pod.Spec.ActiveDeadlineSeconds
	start := p.startTime()
	if limit == nil || p.rec.End != nil || !p.state.Bound || terminal(p.rec.Status.Phase) {
		return
	}
	if at := start.Add(time.Duration(*limit) * time.Second); p.now.Before(at) {
		p.wake(at)
		return
	}
	p.rec.End = &End{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
	p.notice("", corev1.EventTypeNormal, "DeadlineExceeded", p.rec.End.Message)
}

// startTime is when this node first saw the pod.
func (p *planner) startTime() time.Time {
	for _, s := range []*corev1.PodStatus{&p.rec.Status, &p.pod.Status} {
		if s.StartTime != nil {
			return s.StartTime.Time
		}
	}
	return p.now
}

func terminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// over reports whether the pod's containers should not run (any more), for good.
func (p *planner) over() bool {
	return p.pod.DeletionTimestamp != nil || p.state.Removed || p.rec.End != nil || terminal(p.rec.Status.Phase) || terminal(p.pod.Status.Phase)
}

// try emits an action unless it is in flight, was emitted already, or failed so lately that it has to wait. It reports whether it was emitted.
func (p *planner) try(a Action) bool {
	if p.pending(a.Key) {
		return false
	}
	if f, failed := p.state.Failures[a.Key]; failed {
		if at := retryAt(a.Verb, f); p.now.Before(at) {
			p.wake(at)
			return false
		}
	}
	p.out.Actions = append(p.out.Actions, a)
	return true
}

// pending reports whether an action runs or is about to.
func (p *planner) pending(key Key) bool {
	return p.state.InFlight[key] || slices.ContainsFunc(p.out.Actions, func(a Action) bool { return a.Key == key })
}

func (p *planner) wake(at time.Time) {
	if p.out.Wake.IsZero() || at.Before(p.out.Wake) {
		p.out.Wake = at
	}
}

func (p *planner) notice(path, kind, reason, message string) {
	p.out.Notices = append(p.out.Notices, Notice{FieldPath: path, Type: kind, Reason: reason, Message: message})
}

// noticeOnce emits a notice unless it was emitted for this number before.
func (p *planner) noticeOnce(key string, number int, path, kind, reason, message string) {
	if n, noted := p.rec.BackoffNoted[key]; noted && n == number {
		return
	}
	p.rec.BackoffNoted[key] = number
	p.notice(path, kind, reason, message)
}

// prepare makes what all containers need: sandbox then network, volumes, images; side by side.
func (p *planner) prepare() {
	if p.state.Sandbox == nil && !p.anyRunning() {
		p.try(Action{Key: Key{Verb: CreateSandbox}})
	}
	if p.state.Sandbox != nil && !p.networked() {
		p.try(Action{Key: Key{Verb: AttachNetwork}})
	}
	if !p.state.Volumes && p.state.Bound {
		p.try(Action{Key: Key{Verb: PrepareVolumes}})
	}
	for _, c := range allContainers(p.pod) {
		if cur := p.latest[c.Name]; cur == nil || cur.Status == StatusCreated {
			p.image(c, time.Time{})
		}
	}
}

func (p *planner) networked() bool { return p.pod.Spec.HostNetwork || len(p.state.IPs) > 0 }

func (p *planner) anyRunning() bool {
	for i := range p.state.Containers {
		if p.state.Containers[i].Status == StatusRunning {
			return true
		}
	}
	return false
}

// containers drives init, regular and ephemeral containers. It reports true once the pod has nothing more to run.
func (p *planner) containers() (finished bool) {
	if p.state.Sandbox == nil && p.anyRunning() {
		// Somebody took the sandbox from under running containers: they cannot be helped. Stop them; all begin again in a new one.
		p.stopAll(p.now.Add(graceOf(p.pod, nil)), "the pod's sandbox is gone")
		return false
	}
	switch p.initContainers() {
	case initFailed:
		return true
	case initPending:
		return false
	}
	finished = true
	for i := range p.pod.Spec.Containers {
		c := &p.pod.Spec.Containers[i]
		finished = p.container(c, shouldRestart) && finished
	}
	if finished {
		return true
	}
	for i := range p.pod.Spec.EphemeralContainers {
		c := corev1.Container(p.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		p.container(&c, func(*corev1.Pod, *corev1.Container, int) bool { return false })
	}
	return false
}

// initProgress says how far initialisation is.
type initProgress int

const (
	initPending initProgress = iota
	initDone
	initFailed // and will not be tried again
)

// initContainers runs init containers one after another; sidecars stay up and the next one follows when they have started.
func (p *planner) initContainers() initProgress {
	initialised := p.regularRan()
	for i := range p.pod.Spec.InitContainers {
		c := &p.pod.Spec.InitContainers[i]
		cur := p.latest[c.Name]
		if restartable(c) {
			p.container(c, shouldRestart)
			if !initialised && !p.state.started(c, cur) {
				return initPending
			}
			continue
		}
		if initialised {
			continue
		}
		if cur != nil && cur.Status == StatusExited && p.stale(cur) {
			p.start(c, cur.Attempt+1, cur.FinishedAt)
			return initPending
		}
		if !p.container(c, initShouldRestart) {
			return initPending
		}
		if code, gone := p.goneExit(c.Name); cur != nil && cur.ExitCode != 0 || cur == nil && gone && code != 0 {
			return initFailed
		}
	}
	return initDone
}

// stale reports whether a container belongs to an earlier sandbox than the present one (the host was restarted).
func (p *planner) stale(c *ContainerState) bool {
	return p.state.Sandbox == nil || c.CreatedAt.Before(p.state.Sandbox.CreatedAt)
}

// regularRan reports whether a regular container was made in the present sandbox, which means that initialisation is over.
func (p *planner) regularRan() bool {
	for i := range p.pod.Spec.Containers {
		name := p.pod.Spec.Containers[i].Name
		if cur := p.latest[name]; cur != nil && cur.Status != StatusCreated && !p.stale(cur) {
			return true
		}
	}
	return false
}

// container drives one container and reports whether it is over for good.
func (p *planner) container(c *corev1.Container, restart func(*corev1.Pod, *corev1.Container, int) bool) (over bool) {
	cur := p.latest[c.Name]
	if cur == nil {
		if code, lost := p.goneExit(c.Name); lost && !restart(p.pod, c, code) {
			return true
		}
		p.start(c, p.firstAttempt(c.Name), time.Time{})
		return false
	}
	switch {
	case cur.Status == StatusCreated:
		p.start(c, cur.Attempt, time.Time{})
	case cur.Status == StatusRunning:
		p.tend(c, cur)
	case !restart(p.pod, c, cur.ExitCode):
		return true
	default:
		p.restart(c, cur)
	}
	return false
}

// goneExit is the exit code of a container that ran and of which nothing is left; one that was last seen running counts as killed.
func (p *planner) goneExit(name string) (code int, gone bool) {
	old := p.oldStatus(name)
	switch {
	case old == nil:
		return 0, false
	case old.State.Running != nil:
		return exitUnknown, true
	case old.State.Terminated == nil:
		return 0, false
	case p.state.Sandbox != nil && old.State.Terminated.FinishedAt.Time.Before(p.state.Sandbox.CreatedAt.Truncate(time.Second)) && isInit(p.pod, name):
		return 0, false // of an earlier sandbox: initialisation begins again
	}
	return int(old.State.Terminated.ExitCode), true
}

// firstAttempt is 0, or one more than the last known when the container itself is gone.
func (p *planner) firstAttempt(name string) int {
	if old := p.oldStatus(name); old != nil && (old.State.Terminated != nil || old.State.Running != nil) {
		return int(old.RestartCount) + 1
	} else if old != nil {
		return int(old.RestartCount)
	}
	return 0
}

// restart starts the next attempt of a container that ended, after its back-off.
func (p *planner) restart(c *corev1.Container, cur *ContainerState) {
	b := p.rec.Backoffs[c.Name]
	if at := b.wait(cur.FinishedAt); p.now.Before(at) && !p.stale(cur) {
		p.wake(at)
		p.waiting[c.Name] = &corev1.ContainerStateWaiting{
			Reason:  "CrashLoopBackOff",
			Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", b.Delay, c.Name, podText(p.pod)),
		}
		p.noticeOnce(c.Name, cur.Attempt, fieldPath(p.pod, c.Name), corev1.EventTypeWarning, "BackOff",
			fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, podText(p.pod)))
		return
	}
	if p.start(c, cur.Attempt+1, cur.FinishedAt) && !b.Since.After(cur.FinishedAt) {
		p.rec.Backoffs[c.Name] = b.next(cur.FinishedAt, p.now)
	}
}

// podText names a pod as the kubelet does in messages.
func podText(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// start starts an attempt once everything it needs is there, and explains what it waits for. lastExit is when the one before ended.
func (p *planner) start(c *corev1.Container, attempt int, lastExit time.Time) bool {
	image, have := p.image(c, lastExit)
	if why := p.imageWaiting(c); !have && why != nil {
		p.waiting[c.Name] = why
	}
	if !have || p.state.Sandbox == nil || !p.networked() || !p.state.Volumes || p.state.Held {
		return false
	}
	key := Key{Verb: StartContainer, Subject: c.Name}
	if f, failed := p.state.Failures[key]; failed {
		p.waiting[c.Name] = &corev1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}
	}
	return p.try(Action{Key: key, Container: c.Name, Attempt: attempt, Image: image})
}

// tend looks after a running container: hook, probes, and whether it must be replaced.
func (p *planner) tend(c *corev1.Container, cur *ContainerState) {
	if p.state.InFlight[Key{Verb: StopContainer, Subject: cur.ID}] {
		return
	}
	results := p.state.Probes[cur.ID]
	hook := Key{Verb: RunPostStart, Subject: cur.ID}
	_, hookFailed := p.state.Failures[hook]
	switch {
	case cur.Image != c.Image:
		p.stop(c, cur, graceOf(p.pod, nil), fmt.Sprintf("Container %s definition changed, will be restarted", c.Name))
	case hookFailed:
		p.stop(c, cur, graceOf(p.pod, nil), "FailedPostStartHook")
	case results.Startup == ProbeFailure:
		p.stop(c, cur, graceOf(p.pod, c.StartupProbe), fmt.Sprintf("Container %s failed startup probe, will be restarted", c.Name))
	case results.Liveness == ProbeFailure:
		p.stop(c, cur, graceOf(p.pod, c.LivenessProbe), fmt.Sprintf("Container %s failed liveness probe, will be restarted", c.Name))
	case !p.state.hooked(c, cur):
		p.try(Action{Key: hook, Container: c.Name, ID: cur.ID})
	default:
		p.probe(c, cur)
	}
}

// probe asks for the probes that a running container should have: startup alone first, then liveness and readiness.
func (p *planner) probe(c *corev1.Container, cur *ContainerState) {
	add := func(kind ProbeKind) {
		p.out.Probes = append(p.out.Probes, ProbeTarget{Container: c.Name, ContainerID: cur.ID, Kind: kind, StartedAt: cur.StartedAt})
	}
	if !p.state.started(c, cur) {
		add(StartupProbe)
		return
	}
	if c.LivenessProbe != nil && !p.ending {
		add(LivenessProbe)
	}
	if c.ReadinessProbe != nil {
		add(ReadinessProbe)
	}
}

func (p *planner) stop(c *corev1.Container, cur *ContainerState, grace time.Duration, reason string) {
	p.try(Action{Key: Key{Verb: StopContainer, Subject: cur.ID}, Container: c.Name, ID: cur.ID, Grace: grace, PreStop: hasPreStop(c), Reason: reason})
}

func hasPreStop(c *corev1.Container) bool {
	return c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil
}

// removeOld removes containers that a newer attempt has replaced; their end is in the status.
func (p *planner) removeOld() {
	for i := range p.state.Containers {
		c := &p.state.Containers[i]
		newest := p.latest[c.Name]
		if c.Attempt < newest.Attempt && newest.Status != StatusCreated {
			p.try(Action{Key: Key{Verb: RemoveContainer, Subject: c.ID}, Container: c.Name, ID: c.ID})
		}
	}
}
