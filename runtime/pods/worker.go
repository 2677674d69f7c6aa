package pods

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
)

// worker runs one pod. Whatever happens to the pod (a new object, an exit, an action's end, a probe's verdict) changes state under mu
// and wakes the loop; only the loop plans, so plans of one pod follow each other and see everything that happened before them.
type worker struct {
	agent *Agent
	uid   types.UID
	wake  chan struct{}

	mu           sync.Mutex
	pod          *corev1.Pod // nil never; not to be changed
	next         *corev1.Pod // bound again while this worker was ending the pod: a new worker follows
	state        PodState
	claimedUntil time.Time // while not bound
	refreshAt    time.Time // volumes
	launched     bool      // guarded by agent.mu
	fence        fence
	cancels      map[Key]context.CancelFunc
	changedAt    map[string]time.Time // container ID → when its state was last learnt otherwise than by List
	saved        *corev1.Pod          // as in the checkpoint
	savedRecord  Record
	report       reporter
	probes       map[probeKey]context.CancelFunc
	etc          sync.Mutex // serialises writing the pod's /etc files
	tasks        sync.WaitGroup
}

func (a *Agent) newWorker(pod *corev1.Pod) *worker {
	w := &worker{
		agent: a, uid: pod.UID, pod: pod, wake: make(chan struct{}, 1), fence: a.fence,
		cancels: map[Key]context.CancelFunc{}, changedAt: map[string]time.Time{}, probes: map[probeKey]context.CancelFunc{},
		state: PodState{
			HostIPs: a.hostIPs(), Messages: map[string]string{}, Images: map[string]ImageFact{}, Probes: map[string]ProbeResults{},
			Hooked: map[string]bool{}, InFlight: map[Key]bool{}, Failures: map[Key]Failure{},
		},
	}
	return w
}

// update changes the worker's state and wakes the loop.
func (w *worker) update(f func(s *PodState)) {
	w.mu.Lock()
	f(&w.state)
	w.mu.Unlock()
	w.poke()
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// bind takes in the pod's newest object. A pod that is being removed is removed first, and begins again after that.
func (w *worker) bind(pod *corev1.Pod) {
	w.update(func(s *PodState) {
		if s.Removed {
			w.next = pod
			return
		}
		w.pod, s.Bound = pod, true
		w.report.heed(&pod.Status)
	})
}

func (w *worker) remove() {
	w.update(func(s *PodState) {
		w.next = nil
		s.Removed = s.Removed || s.Bound
	})
}

func (w *worker) setFence(f fence) { w.update(func(*PodState) { w.fence = f }) }

// fencedAndRunning reports whether a pod that matches the fence still has, or may yet get, a running container.
func (w *worker) fencedAndRunning() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fence.match == nil || !w.fence.match(w.pod) {
		return false
	}
	for key := range w.state.InFlight {
		if key.Verb == StartContainer {
			return true
		}
	}
	return slices.ContainsFunc(w.state.Containers, func(c ContainerState) bool { return c.Status == StatusRunning })
}

// restore takes over the record of a predecessor.
func (w *worker) restore(r Record) { w.update(func(s *PodState) { s.Record = r }) }

// adopt takes over what runs. What the predecessor reported as started and ready stays so until a probe says otherwise.
func (w *worker) adopt(found podInventory, ips []netip.Addr) {
	w.update(func(s *PodState) {
		s.Sandbox, s.Containers, s.IPs = found.sandbox, found.containers, ips
		if found.sandbox == nil {
			s.IPs = nil // a network without its namespace is attached anew
		}
		reported := map[string]corev1.ContainerStatus{}
		for _, list := range [][]corev1.ContainerStatus{s.Record.Status.InitContainerStatuses, s.Record.Status.ContainerStatuses} {
			for _, c := range list {
				reported[c.ContainerID] = c
			}
		}
		for _, c := range found.containers {
			was, known := reported[containerIDPrefix+c.ID]
			s.Hooked[c.ID] = true
			results := ProbeResults{}
			if known && was.Started != nil && *was.Started {
				results.Startup = ProbeSuccess
			}
			if known && was.Ready {
				results.Readiness = ProbeSuccess
			}
			s.Probes[c.ID] = results
			if c.Status == StatusExited {
				s.Messages[c.ID] = terminationMessage(findContainer(w.pod, c.Name), &c)
			}
		}
	})
}

// observe takes in a container's state as an event or an action's answer reports it.
func (w *worker) observe(c ContainerState) {
	var message string
	if c.Status == StatusExited {
		w.mu.Lock()
		spec := findContainer(w.pod, c.Name)
		w.mu.Unlock()
		message = terminationMessage(spec, &c)
	}
	w.update(func(s *PodState) {
		w.changedAt[c.ID] = time.Now()
		if message != "" {
			s.Messages[c.ID] = message
		}
		s.Containers = upsertContainer(s.Containers, c)
	})
}

// rank orders what a container can be: it never goes back.
func rank(s Status) int {
	return map[Status]int{StatusCreated: 1, StatusRunning: 2, StatusExited: 3}[s]
}

// upsertContainer returns list with c in it, unless what is known of it is newer.
func upsertContainer(list []ContainerState, c ContainerState) []ContainerState {
	out := slices.Clone(list)
	i := slices.IndexFunc(out, func(have ContainerState) bool { return have.ID == c.ID })
	switch {
	case i < 0:
		out = append(out, c)
	case rank(c.Status) >= rank(out[i].Status):
		out[i] = c
	}
	return out
}

// compare corrects the state by a list that was asked for at a time: containers that changed since are left alone.
func (w *worker) compare(found podInventory, asked time.Time) {
	var ended []ContainerState
	w.update(func(s *PodState) {
		if len(s.InFlight) > 0 {
			return // whatever is being done right now will report
		}
		have := map[string]bool{}
		for _, c := range found.containers {
			have[c.ID] = true
			if w.changedAt[c.ID].Before(asked) {
				ended = append(ended, c)
			}
		}
		s.Containers = slices.DeleteFunc(slices.Clone(s.Containers), func(c ContainerState) bool {
			return !have[c.ID] && w.changedAt[c.ID].Before(asked)
		})
		if found.sandbox == nil && s.Sandbox != nil && s.Sandbox.CreatedAt.Before(asked) {
			s.Sandbox, s.IPs = nil, nil
		}
	})
	for _, c := range ended {
		w.observe(c)
	}
}

// container returns the running container of a name.
func (w *worker) container(name string) (ContainerState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cur := latest(w.state.Containers)[name]
	switch {
	case cur == nil:
		return ContainerState{}, fmt.Errorf("container %q: %w", name, ErrNotFound)
	case cur.Status != StatusRunning:
		return *cur, fmt.Errorf("container %q: %w", name, ErrNotRunning)
	}
	return *cur, nil
}

// snapshot is the pod with its present status; nil while it is only claimed.
func (w *worker) snapshot() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.state.Bound {
		return nil
	}
	return w.withStatus()
}

// withStatus is a copy of the pod with the status last planned; mu is held.
func (w *worker) withStatus() *corev1.Pod {
	pod := w.pod.DeepCopy()
	if w.state.Record.Status.Phase != "" {
		pod.Status = *w.state.Record.Status.DeepCopy()
	}
	return pod
}

// run plans and starts actions until the pod is over, which it reports with true, or ctx ends.
func (w *worker) run(ctx context.Context) (over bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.tasks.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		case <-timer.C:
		}
		wake, done := w.step(ctx)
		if done {
			w.finish()
			return true
		}
		if wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, time.Until(wake)))
		}
	}
}

// step plans once and starts what the plan asks for.
func (w *worker) step(ctx context.Context) (wake time.Time, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.state.Bound && !w.claimedUntil.After(now) {
		w.state.Removed = true // the grant ran out
	}
	w.state.Held = w.fence.match != nil && w.fence.match(w.pod)
	w.state.Fenced = w.state.Held && w.fence.stops
	w.state.FenceGrace = w.fence.grace
	if !w.refreshAt.IsZero() && !w.refreshAt.After(now) {
		w.refreshAt = time.Time{}
		w.start(ctx, Action{Key: Key{Verb: refreshVolumes}})
	}

	d := Plan(w.pod, w.state, now)
	w.state.Record = d.Record
	w.save()
	for _, key := range d.Cancel {
		if cancel := w.cancels[key]; cancel != nil {
			cancel()
		}
	}
	for _, n := range d.Notices {
		w.agent.cfg.Reports.Event(w.pod, n.FieldPath, n.Type, n.Reason, n.Message)
	}
	for _, action := range d.Actions {
		w.start(ctx, action)
	}
	w.reconcileProbes(ctx, d.Probes)
	// The end of a pod that is being deleted goes with its final delete.
	if w.state.Bound && !w.state.Removed && (w.pod.DeletionTimestamp == nil || !terminal(d.Status.Phase)) {
		w.report.offer(ctx, w, d.Status)
	}
	return earliest(d.Wake, w.refreshAt, w.expiry()), d.Done
}

// expiry is when a claim runs out; zero once the pod is bound.
func (w *worker) expiry() time.Time {
	if w.state.Bound || w.state.Removed {
		return time.Time{}
	}
	return w.claimedUntil
}

func earliest(times ...time.Time) time.Time {
	var out time.Time
	for _, t := range times {
		if !t.IsZero() && (out.IsZero() || t.Before(out)) {
			out = t
		}
	}
	return out
}

// save writes the checkpoint when something in it changed; mu is held. A full disk must not stop pods: it is logged and tried again.
func (w *worker) save() {
	r := w.state.Record
	if !w.state.Bound || w.saved == w.pod && r.StopFrom.Equal(w.savedRecord.StopFrom) && r.End == w.savedRecord.End &&
		maps.Equal(r.Backoffs, w.savedRecord.Backoffs) && equality.Semantic.DeepEqual(r.Status, w.savedRecord.Status) {
		return
	}
	if err := w.agent.paths.saveCheckpoint(checkpoint{Pod: w.pod, Record: r}); err != nil {
		w.agent.log.Error("a pod's checkpoint cannot be written", "pod", podText(w.pod), "err", err)
		return
	}
	w.saved, w.savedRecord = w.pod, r
}

// finish removes the last traces of a pod that is over.
func (w *worker) finish() {
	w.mu.Lock()
	w.reconcileProbes(context.Background(), nil)
	pod := w.pod
	w.mu.Unlock()
	if err := w.agent.removeFiles(pod); err != nil {
		w.agent.log.Warn("files of a pod that is over cannot be removed", "pod", podText(pod), "err", err)
	}
}

// refreshIfUses refreshes volumes when the pod's spec names the object.
func (w *worker) refreshIfUses(kind, namespace, name string) {
	w.mu.Lock()
	uses := w.state.Volumes && w.pod.Namespace == namespace && usesObject(w.pod, kind, name)
	if uses {
		w.refreshAt = time.Now()
	}
	w.mu.Unlock()
	if uses {
		w.poke()
	}
}

// usesObject reports whether a volume of the pod is made from a ConfigMap or Secret.
func usesObject(pod *corev1.Pod, kind, name string) bool {
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.ConfigMap != nil && kind == "ConfigMap" && v.ConfigMap.Name == name,
			v.Secret != nil && kind == "Secret" && v.Secret.SecretName == name:
			return true
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil && kind == "ConfigMap" && s.ConfigMap.Name == name || s.Secret != nil && kind == "Secret" && s.Secret.Name == name {
					return true
				}
			}
		}
	}
	return false
}
