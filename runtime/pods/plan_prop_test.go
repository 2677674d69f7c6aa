package pods

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// model is a node on which Plan's actions take effect when and how a property test decides: in any order, with failures, exits and
// restarts of the agent in between.
type model struct {
	t      *rapid.T
	pod    *corev1.Pod
	state  PodState
	now    time.Time
	flying map[Key]Action
	starts map[string][]time.Time
	done   bool
	kind   map[string]bool // init containers that run to completion
}

func newModel(t *rapid.T) *model {
	m := &model{t: t, now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), flying: map[Key]Action{}, starts: map[string][]time.Time{}, kind: map[string]bool{}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: types.UID("u"), Generation: 1}}
	pod.Spec.RestartPolicy = rapid.SampledFrom([]corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}).Draw(t, "policy")
	always := corev1.ContainerRestartPolicyAlways
	for i := range rapid.IntRange(0, 3).Draw(t, "init") {
		c := corev1.Container{Name: fmt.Sprintf("init%d", i), Image: "a"}
		if rapid.Bool().Draw(t, "sidecar") {
			c.RestartPolicy = &always
		} else {
			m.kind[c.Name] = true
		}
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "containers") {
		c := corev1.Container{Name: fmt.Sprintf("c%d", i), Image: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "image")}
		c.ImagePullPolicy = rapid.SampledFrom([]corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, ""}).Draw(t, "pull")
		if rapid.Bool().Draw(t, "probed") {
			c.ReadinessProbe, c.LivenessProbe, c.StartupProbe = &corev1.Probe{}, &corev1.Probe{}, &corev1.Probe{}
		}
		if rapid.Bool().Draw(t, "hooked") {
			c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{}, PreStop: &corev1.LifecycleHandler{}}
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	m.pod = pod
	m.state = PodState{Bound: true, HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	m.clearVolatile()
	return m
}

// clearVolatile is what a restart of the agent loses.
func (m *model) clearVolatile() {
	m.state.Images, m.state.Messages, m.state.InFlight = map[string]ImageFact{}, map[string]string{}, map[Key]bool{}
	m.state.Failures, m.state.Volumes = map[Key]Failure{}, false
	m.flying = map[Key]Action{}
	probes, hooked := map[string]ProbeResults{}, map[string]bool{}
	for _, c := range m.state.Containers {
		hooked[c.ID] = true
		probes[c.ID] = m.state.Probes[c.ID]
	}
	m.state.Probes, m.state.Hooked = probes, hooked
}

// plan plans, checks what must always hold, and puts the actions in flight.
func (m *model) plan() Decision {
	before := m.state.Record.Status
	d := Plan(m.pod, m.state, m.now)
	seen := map[Key]bool{}
	for _, a := range d.Actions {
		if a.Verb == Teardown && len(d.Actions) > 1 {
			m.t.Fatalf("a teardown together with %+v", d.Actions)
		}
		if seen[a.Key] || m.state.InFlight[a.Key] {
			m.t.Fatalf("%v twice", a.Key)
		}
		seen[a.Key] = true
		m.checkAction(a)
		m.state.InFlight[a.Key] = true
		m.flying[a.Key] = a
	}
	m.checkStatus(before, d.Status)
	for _, key := range d.Cancel {
		delete(m.flying, key)
		delete(m.state.InFlight, key)
	}
	m.state.Record = d.Record
	m.done = m.done || d.Done
	return d
}

func (m *model) checkAction(a Action) {
	cur := latest(m.state.Containers)[a.Container]
	switch a.Verb {
	case StartContainer:
		if m.pod.DeletionTimestamp != nil || m.state.Removed || terminal(m.state.Record.Status.Phase) || m.state.Fenced || m.state.Held {
			m.t.Fatalf("%s is started in a pod that is over, fenced or held", a.Container)
		}
		if m.state.Sandbox == nil || len(m.state.IPs) == 0 || !m.state.Volumes {
			m.t.Fatalf("%s is started before the pod is prepared", a.Container)
		}
		for _, c := range m.state.Containers {
			if c.Name == a.Container && c.Status == StatusRunning {
				m.t.Fatalf("%s is started while it runs", a.Container)
			}
		}
		if cur != nil && cur.Status == StatusExited && a.Attempt != cur.Attempt+1 {
			m.t.Fatalf("attempt %d after %d", a.Attempt, cur.Attempt)
		}
		m.checkOrder(a.Container)
	case Teardown, DeletePod:
		for key := range m.flying {
			if key.Verb != PullImage && key.Verb != InspectImage && key.Verb != RunPostStart && key != a.Key {
				m.t.Fatalf("%s while %s is in flight", a.Verb, key.Verb)
			}
		}
		for _, c := range m.state.Containers {
			if c.Status == StatusRunning {
				m.t.Fatalf("%s while %s runs", a.Verb, c.Name)
			}
		}
		if a.Verb == DeletePod && (!m.state.TornDown || m.pod.DeletionTimestamp == nil) {
			m.t.Fatalf("deleted while something is left, or nobody asked")
		}
	case StopContainer, KillContainer, RunPostStart:
		if !slices.ContainsFunc(m.state.Containers, func(c ContainerState) bool { return c.ID == a.ID && c.Status == StatusRunning }) {
			m.t.Fatalf("%s of %s, which does not run", a.Verb, a.Container)
		}
	}
}

// checkOrder: before a container first starts, every init container before it is done, or started if it is a sidecar.
func (m *model) checkOrder(name string) {
	byName := latest(m.state.Containers)
	for _, c := range m.pod.Spec.Containers {
		if cur := byName[c.Name]; cur != nil && cur.Status != StatusCreated {
			return // initialised before
		}
	}
	for i := range m.pod.Spec.InitContainers {
		c := &m.pod.Spec.InitContainers[i]
		if c.Name == name {
			return
		}
		cur := byName[c.Name]
		if restartable(c) && !m.state.started(c, cur) || !restartable(c) && (cur == nil || cur.Status != StatusExited || cur.ExitCode != 0) {
			m.t.Fatalf("%s starts before %s is done", name, c.Name)
		}
	}
}

func (m *model) checkStatus(before, s corev1.PodStatus) {
	if terminal(before.Phase) && s.Phase != before.Phase {
		m.t.Fatalf("phase %s after %s", s.Phase, before.Phase)
	}
	if len(s.ContainerStatuses) != len(m.pod.Spec.Containers) || len(s.InitContainerStatuses) != len(m.pod.Spec.InitContainers) || len(s.Conditions) != 5 {
		m.t.Fatalf("status is incomplete: %+v", s)
	}
	old := map[string]int32{}
	for _, c := range slices.Concat(before.InitContainerStatuses, before.ContainerStatuses) {
		old[c.Name] = c.RestartCount
	}
	ready := true
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses) {
		states := 0
		for _, set := range []bool{c.State.Waiting != nil, c.State.Running != nil, c.State.Terminated != nil} {
			if set {
				states++
			}
		}
		if states != 1 || c.State.Waiting != nil && c.State.Waiting.Reason == "" || c.RestartCount < old[c.Name] || c.Started == nil {
			m.t.Fatalf("status of %s: %+v (restarts before: %d)", c.Name, c, old[c.Name])
		}
		if c.Ready && c.State.Running == nil && !m.kind[c.Name] {
			m.t.Fatalf("%s is ready and does not run", c.Name)
		}
		ready = ready && c.Ready
	}
	if isReady(&s) != ready && s.Phase == corev1.PodRunning {
		m.t.Fatalf("Ready %v with containers %+v", isReady(&s), s.ContainerStatuses)
	}
}

// finish lets one action in flight end, well or badly.
func (m *model) finish(a Action, ok bool) {
	delete(m.flying, a.Key)
	delete(m.state.InFlight, a.Key)
	if !ok {
		f := m.state.Failures[a.Key]
		m.state.Failures[a.Key] = Failure{Reason: reasonCreateError, Message: "no", At: m.now, Count: f.Count + 1}
		return
	}
	delete(m.state.Failures, a.Key)
	switch a.Verb {
	case CreateSandbox:
		m.state.Sandbox = &Sandbox{PodUID: "u", CreatedAt: m.now}
	case AttachNetwork:
		m.state.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	case PrepareVolumes:
		m.state.Volumes = true
	case InspectImage, PullImage:
		m.state.Images[a.Subject] = ImageFact{Image: Image{ID: a.Subject}, At: m.now, Pulled: a.Verb == PullImage}
	case StartContainer:
		m.starts[a.Container] = append(m.starts[a.Container], m.now)
		m.state.Containers = upsertContainer(m.state.Containers, ContainerState{
			ID: fmt.Sprintf("%s-%d", a.Container, a.Attempt), Name: a.Container, Attempt: a.Attempt, Image: findContainer(m.pod, a.Container).Image,
			Status: StatusRunning, CreatedAt: m.now, StartedAt: m.now,
		})
	case RunPostStart:
		m.state.Hooked[a.ID] = true
	case StopContainer, KillContainer:
		m.exit(a.ID, 0)
	case RemoveContainer:
		dropContainer(&m.state, a.ID)
	case Teardown:
		m.state.TornDown, m.state.Sandbox, m.state.IPs, m.state.Containers = true, nil, nil, nil
	case DeletePod:
		m.state.Deleted = true
	}
}

func (m *model) exit(id string, code int) {
	m.state.Containers = slices.Clone(m.state.Containers)
	for i := range m.state.Containers {
		if c := &m.state.Containers[i]; c.ID == id && c.Status == StatusRunning {
			c.Status, c.ExitCode, c.FinishedAt = StatusExited, code, m.now
		}
	}
}

// chaos does one thing of all that can happen.
func (m *model) chaos() {
	t := m.t
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0, 1, 2, 3:
		if keys := sortedKeys(m.flying); len(keys) > 0 {
			m.finish(m.flying[rapid.SampledFrom(keys).Draw(t, "action")], rapid.IntRange(0, 4).Draw(t, "luck") > 0)
		}
	case 4, 5:
		m.now = m.now.Add(time.Duration(rapid.IntRange(1, 20_000).Draw(t, "ms")) * time.Millisecond)
	case 6:
		if running := m.running(); len(running) > 0 {
			m.exit(rapid.SampledFrom(running).Draw(t, "exits"), rapid.SampledFrom([]int{0, 0, 1, 137}).Draw(t, "code"))
		}
	case 7:
		if running := m.running(); len(running) > 0 {
			id := rapid.SampledFrom(running).Draw(t, "probed")
			result := rapid.SampledFrom([]ProbeResult{ProbeSuccess, ProbeSuccess, ProbeFailure})
			m.state.Probes[id] = ProbeResults{Startup: result.Draw(t, "startup"), Liveness: result.Draw(t, "liveness"), Readiness: result.Draw(t, "readiness")}
		}
	case 8:
		if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
			m.clearVolatile()
		}
	case 9:
		if rapid.IntRange(0, 9).Draw(t, "fence") == 0 {
			m.state.Fenced = !m.state.Fenced
		}
		if rapid.IntRange(0, 9).Draw(t, "hold") == 0 {
			m.state.Held = !m.state.Held
		}
	}
}

func (m *model) running() []string {
	var out []string
	for _, c := range m.state.Containers {
		if c.Status == StatusRunning {
			out = append(out, c.ID)
		}
	}
	return out
}

func sortedKeys(m map[Key]Action) []Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b Key) int {
		if a.Verb != b.Verb {
			return map[bool]int{true: -1, false: 1}[a.Verb < b.Verb]
		}
		return map[bool]int{true: -1, false: 1}[a.Subject < b.Subject]
	})
}

// settle lets everything succeed until nothing is left to do, and fails when that takes too long.
func (m *model) settle() Decision {
	m.state.Fenced, m.state.Held = false, false
	for range 400 {
		for _, c := range m.state.Containers {
			if c.Status == StatusRunning {
				m.state.Probes[c.ID] = ProbeResults{Startup: ProbeSuccess, Liveness: ProbeSuccess, Readiness: ProbeSuccess}
				if m.kind[c.Name] {
					m.exit(c.ID, 0)
				}
			}
		}
		d := m.plan()
		keys := sortedKeys(m.flying)
		if len(keys) == 0 && d.Wake.IsZero() {
			return d
		}
		for _, key := range keys {
			if a, still := m.flying[key]; still {
				m.finish(a, true)
			}
		}
		if len(keys) == 0 && d.Wake.After(m.now) {
			m.now = d.Wake
		}
	}
	d := Plan(m.pod, m.state, m.now)
	m.t.Fatalf("no rest after 400 rounds at %s: in flight %v, then %+v wake %s, failures %v, waiting %+v", m.now, sortedKeys(m.flying), d.Actions, d.Wake, m.state.Failures, d.Status.ContainerStatuses)
	return Decision{}
}

// Whatever happens, what must always hold holds; and when it stops happening, the pod gets where it should be.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for range rapid.IntRange(0, 120).Draw(t, "steps") {
			m.chaos()
			m.plan()
		}
		end := rapid.SampledFrom([]string{"stay", "delete", "remove"}).Draw(t, "end")
		switch end {
		case "delete":
			m.pod = m.pod.DeepCopy()
			m.pod.DeletionTimestamp, m.pod.DeletionGracePeriodSeconds = &metav1.Time{Time: m.now}, new(int64)
		case "remove":
			m.state.Removed = true
		}
		d := m.settle()
		switch {
		case end != "stay":
			if !m.done || len(m.state.Containers) > 0 || m.state.Sandbox != nil || m.state.Deleted != (end == "delete") {
				t.Fatalf("%s: done %v, state %+v", end, m.done, m.state)
			}
		case terminal(d.Status.Phase):
			if m.pod.Spec.RestartPolicy == corev1.RestartPolicyAlways || !m.state.TornDown {
				t.Fatalf("phase %s with policy %s, torn down %v", d.Status.Phase, m.pod.Spec.RestartPolicy, m.state.TornDown)
			}
		case m.pod.Spec.RestartPolicy == corev1.RestartPolicyAlways && !isReady(&d.Status):
			t.Fatalf("not ready in the end: %+v", d.Status)
		}
		if again := Plan(m.pod, m.state, m.now); len(again.Actions) > 0 {
			t.Fatalf("not stable: %+v", again.Actions)
		}
	})
}

// A container that always fails is started at most twice in any ten seconds, and the gaps grow to five minutes.
func TestNoRestartStorms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		m.pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
		for i := range m.pod.Spec.Containers {
			m.pod.Spec.Containers[i].Lifecycle = nil
		}
		life := time.Duration(rapid.IntRange(0, 5000).Draw(t, "life")) * time.Millisecond
		for range rapid.IntRange(20, 300).Draw(t, "steps") {
			d := m.plan()
			for _, key := range sortedKeys(m.flying) {
				m.finish(m.flying[key], true)
			}
			for _, c := range m.state.Containers {
				if c.Status == StatusRunning && !m.now.Before(c.StartedAt.Add(life)) {
					m.exit(c.ID, 1)
				}
			}
			if rapid.IntRange(0, 20).Draw(t, "restart") == 0 {
				m.clearVolatile()
			}
			m.now = m.now.Add(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond)
			if !d.Wake.IsZero() && d.Wake.After(m.now) && rapid.Bool().Draw(t, "jump") {
				m.now = d.Wake
			}
		}
		for name, at := range m.starts {
			for i := 2; i < len(at); i++ {
				least := min(backoffFirst<<min(i-2, 5), backoffMax)
				if gap := at[i].Sub(at[i-1]); gap < least {
					t.Fatalf("%s: start %d came %s after the one before, not %s", name, i, gap, least)
				}
			}
		}
	})
}
