package pods_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

func TestPodBecomesReady(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web")
		begun := time.Now()
		r.agent.Set([]*corev1.Pod{pod})
		after(20 * time.Millisecond)
		s := r.cluster.status(pod)
		if s.Phase != corev1.PodRunning {
			t.Fatalf("phase %q after %s", s.Phase, time.Since(begun))
		}
		for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
			if c := condition(s, kind); c.Status != corev1.ConditionTrue || c.ObservedGeneration != 1 || c.LastTransitionTime.IsZero() {
				t.Errorf("condition %s: %+v", kind, c)
			}
		}
		c := containerStatus(t, s, "main")
		if c.State.Running == nil || !c.Ready || c.Started == nil || !*c.Started || c.RestartCount != 0 ||
			!strings.HasPrefix(c.ContainerID, "containerd://") || c.Image != "img:1" || !strings.HasPrefix(c.ImageID, "img:1@sha256:") {
			t.Errorf("container status %+v", c)
		}
		if s.PodIP != "10.32.0.1" || s.HostIP != "192.0.2.1" || len(s.PodIPs) != 1 || len(s.HostIPs) != 1 || s.StartTime == nil || s.QOSClass != corev1.PodQOSBestEffort {
			t.Errorf("status %+v", s)
		}
		if n := r.cluster.writes[pod.UID]; n != 1 {
			t.Errorf("a pod that was ready at once was written %d times", n)
		}
		calls := len(r.engine.Calls())
		after(50 * time.Second)
		if more := len(r.engine.Calls()) - calls; more != 0 {
			t.Errorf("%d calls while nothing happened: %q", more, r.engine.Calls()[calls:])
		}
		for _, want := range []string{"Pulled: Container image", "Created: Container created", "Started: Container started"} {
			if r.cluster.eventCount(want) != 1 {
				t.Errorf("event %q is not there once: %q", want, r.cluster.events)
			}
		}
	})
}

func TestInitContainersRunInOrderAndSidecarsStay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"first": {RunFor: 2 * time.Second}, "last": {RunFor: 3 * time.Second}})
		r.start()
		pod := newPod("web", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{newContainer("first"), sidecar("proxy"), newContainer("last")}
		})
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		s := r.cluster.status(pod)
		if s.Phase != corev1.PodPending || containerStatus(t, s, "main").State.Waiting.Reason != "PodInitializing" || containerStatus(t, s, "proxy").State.Waiting == nil {
			t.Errorf("while the first init container runs: %+v", s)
		}
		if got := condition(s, corev1.PodInitialized); got.Status != corev1.ConditionFalse || got.Message != "containers with incomplete status: [first proxy last]" {
			t.Errorf("Initialized: %+v", got)
		}
		after(3 * time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"web/last", "web/proxy"}) {
			t.Errorf("running %q", got)
		}
		after(3 * time.Second)
		s = r.cluster.status(pod)
		if s.Phase != corev1.PodRunning || condition(s, corev1.PodReady).Status != corev1.ConditionTrue || !containerStatus(t, s, "first").Ready {
			t.Errorf("in the end: %+v", s)
		}
		want := []string{"create web/first#0", "create web/proxy#0", "create web/last#0", "create web/main#0"}
		if got := r.callsWith("create web"); !slices.Equal(got, want) {
			t.Errorf("created %q, want %q", got, want)
		}

		r.agent.Upsert(deleting(pod, 30))
		after(time.Second)
		if !r.cluster.isDeleted(pod) || !r.engine.Empty() {
			t.Fatalf("not deleted; running %q", r.engine.Running())
		}
		if stops := r.callsWith("stop"); len(stops) != 2 {
			t.Errorf("stopped %q, want main and then the sidecar", stops)
		}
		if _, err := os.Stat(r.dir + "/agent/pods/" + string(pod.UID)); !os.IsNotExist(err) {
			t.Errorf("files of a deleted pod: %v", err)
		}
	})
}

func TestCrashLoopBacksOff(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var starts []time.Duration
		begun := time.Now()
		r.engine.Program = func(spec pods.ContainerSpec) podstest.Program {
			starts = append(starts, time.Since(begun).Truncate(time.Second))
			p := podstest.Program{RunFor: time.Second, ExitCode: 3, Message: "it broke"}
			if spec.Attempt == 9 {
				p.RunFor = 11 * time.Minute
			}
			return p
		}
		r.start()
		pod := newPod("crash")
		r.agent.Set([]*corev1.Pod{pod})
		after(3 * time.Second)
		s := r.cluster.status(pod)
		c := containerStatus(t, s, "main")
		if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" ||
			c.State.Waiting.Message != "back-off 10s restarting failed container=main pod=crash_default(uid-crash)" {
			t.Errorf("state %+v", c.State)
		}
		if last := c.LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "it broke" {
			t.Errorf("last state %+v", c.LastTerminationState)
		}
		if c.RestartCount != 1 || s.Phase != corev1.PodRunning {
			t.Errorf("restarts %d, phase %s", c.RestartCount, s.Phase)
		}
		after(time.Hour)
		var gaps []time.Duration
		for i := 1; i < len(starts); i++ {
			gaps = append(gaps, starts[i]-starts[i-1])
		}
		sec := time.Second
		want := []time.Duration{1 * sec, 11 * sec, 21 * sec, 41 * sec, 81 * sec, 161 * sec, 301 * sec, 301 * sec, 301 * sec, 11 * time.Minute, 11 * sec}
		// The tenth ran for longer than the reset: it was restarted at once and the series began anew.
		if len(gaps) < len(want) || !near(gaps[:len(want)], want) {
			t.Errorf("gaps between starts %v, want %v", gaps, want)
		}
		if n := r.cluster.eventCount("BackOff: Back-off restarting failed container main"); n < 9 {
			t.Errorf("%d back-off events", n)
		}
		inventory, err := r.engine.List(t.Context())
		if err != nil || len(inventory.Containers) > 2 {
			t.Errorf("%d containers are kept: %v", len(inventory.Containers), err)
		}
	})
}

func near(got, want []time.Duration) bool {
	return slices.EqualFunc(got, want, func(a, b time.Duration) bool { return (a - b).Abs() <= time.Second })
}

func TestRestartPolicies(t *testing.T) {
	for _, test := range []struct {
		policy   corev1.RestartPolicy
		exit     int
		phase    corev1.PodPhase
		restarts bool
	}{
		{corev1.RestartPolicyNever, 0, corev1.PodSucceeded, false},
		{corev1.RestartPolicyNever, 1, corev1.PodFailed, false},
		{corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded, false},
		{corev1.RestartPolicyOnFailure, 1, corev1.PodRunning, true},
		{corev1.RestartPolicyAlways, 0, corev1.PodRunning, true},
	} {
		t.Run(fmt.Sprintf("%s exit %d", test.policy, test.exit), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.engine.Program = programs(map[string]podstest.Program{"main": {RunFor: time.Second, ExitCode: test.exit}})
				r.start()
				pod := newPod("job", policy(test.policy), func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{sidecar("proxy")} })
				r.agent.Set([]*corev1.Pod{pod})
				after(30 * time.Second)
				s := r.cluster.status(pod)
				if s.Phase != test.phase {
					t.Errorf("phase %s, want %s", s.Phase, test.phase)
				}
				if c := containerStatus(t, s, "main"); (c.RestartCount > 0) != test.restarts {
					t.Errorf("%d restarts", c.RestartCount)
				}
				if !test.restarts {
					if !r.engine.Empty() {
						t.Errorf("a finished pod holds %q", r.engine.Running())
					}
					if c := condition(s, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "Pod"+strings.Replace(string(test.phase), "Succeeded", "Completed", 1) {
						t.Errorf("Ready %+v", c)
					}
					r.agent.Upsert(deleting(pod, 30))
					after(time.Second)
					if !r.cluster.isDeleted(pod) || r.cluster.deleted[pod.UID].Phase != test.phase {
						t.Error("a finished pod is not deleted, or loses its phase")
					}
				}
			})
		})
	}
}

func TestFailedInitContainerFailsThePod(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"init": {RunFor: time.Second, ExitCode: 2}})
		r.start()
		pod := newPod("job", policy(corev1.RestartPolicyNever), func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{newContainer("init")} })
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodFailed || len(r.callsWith("create job/main")) > 0 {
			t.Errorf("phase %s; created %q", s.Phase, r.callsWith("create"))
		}
	})
}

func TestImages(t *testing.T) {
	for _, test := range []struct {
		name, ref string
		policy    corev1.PullPolicy
		pullErr   error
		reason    string
		message   string
		ready     bool
	}{
		{"missing and pulled", "other:1", corev1.PullIfNotPresent, nil, "", "", true},
		{"never", "other:1", corev1.PullNever, nil, "ErrImageNeverPull", `Container image "other:1" is not present with pull policy of Never`, false},
		{"invalid", "BAD//x", corev1.PullIfNotPresent, nil, "InvalidImageName", "", false},
		{"refused", "other:1", corev1.PullIfNotPresent, fmt.Errorf("no such manifest: %w", pods.ErrImagePull), "ImagePullBackOff", `Back-off pulling image "other:1": ErrImagePull: no such manifest: image pull failed`, false},
		{"always", "img:1", corev1.PullAlways, nil, "", "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.engine.PullErr = func(string) error { return test.pullErr }
				r.start()
				pod := newPod("web", func(p *corev1.Pod) {
					p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = test.ref, test.policy
				})
				r.agent.Set([]*corev1.Pod{pod})
				after(5 * time.Second)
				s := r.cluster.status(pod)
				if ready := condition(s, corev1.PodReady).Status == corev1.ConditionTrue; ready != test.ready {
					t.Fatalf("ready %v: %+v", ready, s.ContainerStatuses)
				}
				if test.ready {
					return
				}
				c := containerStatus(t, s, "main")
				if c.State.Waiting == nil || c.State.Waiting.Reason != test.reason || test.message != "" && c.State.Waiting.Message != test.message {
					t.Errorf("waiting %+v", c.State.Waiting)
				}
				after(10 * time.Minute)
				if n := len(r.callsWith("pull")); test.pullErr != nil && (n < 5 || n > 8) {
					t.Errorf("%d pulls in ten minutes", n)
				}
			})
		})
	}
}

func TestAnImportedImageEndsTheBackOff(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.PullErr = func(string) error { return fmt.Errorf("no such manifest: %w", pods.ErrImagePull) }
		r.start()
		pod := newPod("web", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other:1" })
		r.agent.Set([]*corev1.Pod{pod})
		after(4 * time.Minute)
		if _, err := r.engine.Import(t.Context(), strings.NewReader("other:1")); err != nil {
			t.Fatal(err)
		}
		pulls := len(r.callsWith("pull"))
		after(15 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodRunning {
			t.Errorf("phase %s: %+v", s.Phase, s.ContainerStatuses)
		}
		if n := len(r.callsWith("pull")); n != pulls {
			t.Errorf("%d pulls after the import", n-pulls)
		}
	})
}

func TestMissingConfigMapIsShownAndHealed(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
		})
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		c := containerStatus(t, r.cluster.status(pod), "main")
		if c.State.Waiting == nil || c.State.Waiting.Reason != "CreateContainerConfigError" || c.State.Waiting.Message != `configmaps "conf" not found` {
			t.Errorf("state %+v", c.State)
		}
		r.cluster.mu.Lock()
		r.cluster.objects["default/conf"] = &corev1.ConfigMap{Data: map[string]string{"A": "1"}}
		r.cluster.mu.Unlock()
		after(11 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodRunning {
			t.Errorf("phase %s", s.Phase)
		}
	})
}

func TestStartErrorIsShown(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"main": {StartErr: "exec: no such file"}})
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(3 * time.Second)
		c := containerStatus(t, r.cluster.status(pod), "main")
		if last := c.LastTerminationState.Terminated; last == nil || last.Reason != "StartError" || last.ExitCode != 128 || last.Message != "exec: no such file" {
			t.Errorf("status %+v", c)
		}
		if n := len(r.callsWith("create web")); n != 2 {
			t.Errorf("%d attempts in three seconds", n)
		}
	})
}

func TestProbesAndHooks(t *testing.T) {
	exec := func(command ...string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}
	}
	bubble(t, func(t *testing.T, r *rig) {
		results := map[string]int{"startup": 1, "live": 0, "ready": 0}
		var hooks []string
		r.engine.Program = func(pods.ContainerSpec) podstest.Program {
			return podstest.Program{Exec: func(command []string, _ pods.Stdio) (int, error) {
				r.cluster.mu.Lock()
				defer r.cluster.mu.Unlock()
				if strings.HasPrefix(command[0], "hook") {
					hooks = append(hooks, command[0])
				}
				return results[command[0]], nil
			}}
		}
		set := func(name string, code int) {
			r.cluster.mu.Lock()
			results[name] = code
			r.cluster.mu.Unlock()
		}
		r.start()
		pod := newPod("web", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.StartupProbe = &corev1.Probe{ProbeHandler: exec("startup"), PeriodSeconds: 1, FailureThreshold: 60}
			c.LivenessProbe = &corev1.Probe{ProbeHandler: exec("live"), PeriodSeconds: 1, FailureThreshold: 3}
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: exec("ready"), PeriodSeconds: 1, FailureThreshold: 2}
			c.Lifecycle = &corev1.Lifecycle{
				PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"hook-start"}}},
				PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"hook-stop"}}},
			}
		})
		ready := func() bool { return condition(r.cluster.status(pod), corev1.PodReady).Status == corev1.ConditionTrue }
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		if ready() || *containerStatus(t, r.cluster.status(pod), "main").Started {
			t.Error("ready or started before the startup probe succeeded")
		}
		set("startup", 0)
		after(1500 * time.Millisecond)
		if !ready() {
			t.Error("not ready after the startup probe succeeded")
		}
		set("ready", 1)
		after(3 * time.Second)
		if ready() {
			t.Error("ready though the readiness probe fails")
		}
		set("ready", 0)
		after(1500 * time.Millisecond)
		if !ready() {
			t.Error("not ready again")
		}
		set("live", 1)
		after(4 * time.Second)
		set("live", 0)
		after(2 * time.Second)
		if c := containerStatus(t, r.cluster.status(pod), "main"); c.RestartCount != 1 || r.cluster.eventCount("Killing: Container main failed liveness probe, will be restarted") != 1 {
			t.Errorf("restarts %d, events %q", c.RestartCount, r.cluster.events)
		}
		if !slices.Equal(hooks, []string{"hook-start", "hook-stop", "hook-start"}) {
			t.Errorf("hooks %q", hooks)
		}
		if r.cluster.eventCount("Unhealthy: Liveness probe failed") == 0 {
			t.Error("no Unhealthy event")
		}
	})
}

func TestFailedPostStartHookRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"main": {Exec: func([]string, pods.Stdio) (int, error) { return 1, nil }}})
		r.start()
		pod := newPod("web", func(p *corev1.Pod) {
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		})
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		if r.cluster.eventCount("FailedPostStartHook") == 0 || containerStatus(t, r.cluster.status(pod), "main").RestartCount == 0 {
			t.Errorf("events %q", r.cluster.events)
		}
	})
}
