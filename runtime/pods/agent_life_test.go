package pods_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

func TestDeletionHonoursGrace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"main": {StopDelay: time.Minute}})
		r.start()
		pod := newPod("slow")
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		r.agent.Upsert(deleting(pod, 30))
		after(29 * time.Second)
		if r.cluster.isDeleted(pod) || len(r.engine.Running()) == 0 {
			t.Fatal("killed before the grace period was over")
		}
		after(2 * time.Second)
		if !r.cluster.isDeleted(pod) || r.cluster.deleted[pod.UID].Phase != corev1.PodFailed {
			t.Fatalf("not deleted after the grace period: %+v", r.cluster.deleted)
		}
		if got := r.cluster.deleted[pod.UID].ContainerStatuses[0].State.Terminated; got == nil || got.ExitCode != 137 {
			t.Errorf("final state %+v", got)
		}
		if len(r.agent.Pods()) != 0 {
			t.Error("the agent still has the pod")
		}
	})
}

func TestShorterGraceKillsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"main": {StopDelay: time.Hour}})
		r.start()
		pod := newPod("slow")
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		r.agent.Upsert(deleting(pod, 600))
		after(10 * time.Second)
		r.agent.Upsert(deleting(pod, 1))
		after(3 * time.Second)
		if !r.cluster.isDeleted(pod) {
			t.Error("a shorter grace period was not honoured")
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("job", policy(corev1.RestartPolicyOnFailure), func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(20)) })
		r.agent.Set([]*corev1.Pod{pod})
		after(15 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodRunning {
			t.Fatalf("phase %s", s.Phase)
		}
		after(10 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || !r.engine.Empty() {
			t.Errorf("status %s %s, running %q", s.Phase, s.Reason, r.engine.Running())
		}
	})
}

func TestRestartedAgentAdopts(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		keep, ended, gone := newPod("keep"), newPod("ended"), newPod("gone")
		keep.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		r.agent.Set([]*corev1.Pod{keep, ended, gone})
		after(2 * time.Second)
		before := containerStatus(t, r.cluster.status(keep), "main")
		r.stop()
		if n := len(r.engine.Running()); n != 3 {
			t.Fatalf("%d containers after the agent ended", n)
		}
		r.engine.Exit(string(ended.UID), "main", 7, true) // while nobody listens
		calls := len(r.engine.Calls())

		r.start()
		after(2 * time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"ended/main", "gone/main", "keep/main"}) {
			t.Errorf("without the cluster: running %q", got)
		}
		r.stop()
		r.start(keep, ended)
		after(2 * time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"ended/main", "keep/main"}) {
			t.Errorf("running %q", got)
		}
		for _, c := range r.engine.Calls()[calls:] {
			if strings.HasPrefix(c, "create keep") {
				t.Errorf("the adopted container was made again")
			}
		}
		if now := containerStatus(t, r.cluster.status(keep), "main"); now.ContainerID != before.ContainerID || now.RestartCount != 0 || !now.Ready {
			t.Errorf("adopted: %+v", now)
		}
		writes := r.cluster.writes[keep.UID]
		r.stop()
		known := keep.DeepCopy()
		known.Status = r.cluster.status(keep)
		r.start(known, ended)
		after(2 * time.Second)
		if n := r.cluster.writes[keep.UID] - writes; n != 0 {
			t.Errorf("%d writes for a pod that did not change", n)
		}
		if c := containerStatus(t, r.cluster.status(ended), "main"); c.RestartCount != 1 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 7 {
			t.Errorf("the one that ended: %+v", c)
		}
		if r.cluster.isDeleted(gone) {
			t.Error("an object that was gone was deleted again")
		}
	})
}

func TestHostRestart(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"init": {RunFor: time.Second}})
		r.start()
		service := newPod("service", func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{newContainer("init")} })
		job := newPod("job", policy(corev1.RestartPolicyNever))
		r.agent.Set([]*corev1.Pod{service, job})
		after(5 * time.Second)
		r.stop()
		r.engine.Crash()
		after(time.Minute)
		r.start(service, job) // known before the agent runs
		after(30 * time.Second)
		s := r.cluster.status(service)
		if c := containerStatus(t, s, "main"); s.Phase != corev1.PodRunning || c.RestartCount != 1 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.Reason != "ContainerStatusUnknown" {
			t.Errorf("service %s: %+v", s.Phase, c)
		}
		if n := len(r.callsWith("create service/init")); n != 2 {
			t.Errorf("init container was made %d times", n)
		}
		if s := r.cluster.status(job); s.Phase != corev1.PodFailed {
			t.Errorf("a job that must not run twice is %s: %+v", s.Phase, s.ContainerStatuses)
		}
		if n := len(r.callsWith("create job/main")); n != 1 {
			t.Errorf("it was made %d times", n)
		}
	})
}

func TestOrphansAreSwept(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		if _, err := r.engine.CreateSandbox(t.Context(), pods.SandboxSpec{PodUID: "old", Name: "old"}); err != nil {
			t.Fatal(err)
		}
		r.start()
		after(time.Second)
		if r.engine.Empty() {
			t.Fatal("swept before anybody said what should run")
		}
		r.agent.Set(nil)
		after(time.Second)
		if !r.engine.Empty() {
			t.Error("the orphan is still there")
		}
	})
}

// A pod is bound to this node while its rests are being removed: nothing of its new life may go with them.
func TestAPodThatComesBackDuringTheSweep(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		pod := newPod("back")
		r.engine.Removal = 5 * time.Second
		r.start()
		after(time.Second)
		if _, err := r.engine.CreateSandbox(t.Context(), pods.SandboxSpec{PodUID: string(pod.UID), Name: pod.Name}); err != nil {
			t.Fatal(err)
		}
		r.agent.Set(nil)
		after(time.Second) // the removal is under way
		r.agent.Upsert(pod)
		after(30 * time.Second)
		if running := r.engine.RunningPods(); len(running) != 1 {
			t.Errorf("%v run", running)
		}
		made := 0
		for _, call := range r.engine.Calls() {
			if strings.HasPrefix(call, "create-sandbox") {
				made++
			}
		}
		if made != 2 {
			t.Errorf("calls %v", r.engine.Calls())
		}
	})
}

func TestFenceStopsOnlyWhatNeedsIdentity(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		yes := true
		db := newPod("db", func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", Controller: &yes}}
		})
		web := newPod("web")
		r.agent.Set([]*corev1.Pod{db, web})
		after(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		identity := func(p *corev1.Pod) bool { return pods.NeedsIdentity(p, nil) }
		if err := r.agent.Fence(ctx, identity, time.Second); err != nil {
			t.Fatal(err)
		}
		late := newPod("late", func(p *corev1.Pod) { p.OwnerReferences = db.OwnerReferences })
		r.agent.Upsert(late)
		after(time.Minute)
		if got := r.engine.Running(); !slices.Equal(got, []string{"web/main"}) {
			t.Errorf("fenced, running %q", got)
		}
		r.agent.Lift(nil)
		after(time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"db/main", "late/main", "web/main"}) {
			t.Errorf("unfenced, running %q", got)
		}
	})
}

// TestHeldPodsStartNothingAndRunOn: a node that does not know yet whether a pod is still its own leaves it as it is.
func TestHeldPodsStartNothingAndRunOn(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		runs, ended, web := newPod("runs"), newPod("ended"), newPod("web")
		r.agent.Set([]*corev1.Pod{runs, ended, web})
		after(time.Second)
		r.stop()
		r.engine.Exit(string(ended.UID), "main", 137, true) // while nobody listens
		r.held = func(p *corev1.Pod) bool { return p.Name != "web" }
		r.start()
		r.agent.Upsert(newPod("late"))
		r.engine.Exit(string(web.UID), "main", 1, false)
		after(time.Minute)
		if got := r.engine.Running(); !slices.Equal(got, []string{"runs/main", "web/main"}) {
			t.Errorf("held, running %q", got)
		}
		r.agent.Lift(func(p *corev1.Pod) bool { return p.Name == "late" })
		after(time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"ended/main", "runs/main", "web/main"}) {
			t.Errorf("all but one are held no more, running %q", got)
		}
	})
}

func TestClaimPreparesAndExpires(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		r.agent.Set(nil)
		bound, never := newPod("bound"), newPod("never")
		r.agent.Prepare(bound)
		r.agent.Prepare(never)
		after(time.Second)
		if n := len(r.callsWith("create-sandbox")); n != 2 || len(r.callsWith("create bound")) != 0 {
			t.Errorf("prepared: %q", r.engine.Calls())
		}
		if len(r.cluster.statuses) != 0 || len(r.agent.Pods()) != 0 {
			t.Error("a claimed pod was reported")
		}
		r.agent.Upsert(bound)
		after(5 * time.Millisecond)
		if got := r.engine.Running(); !slices.Equal(got, []string{"bound/main"}) {
			t.Errorf("running %q soon after the binding", got)
		}
		after(15 * time.Second)
		if n := len(r.callsWith("remove-sandbox")); n != 1 {
			t.Errorf("the sandbox of an expired claim was removed %d times", n)
		}
	})
}

func TestRuntimeDown(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		old, fresh := newPod("old"), newPod("fresh")
		r.agent.Set([]*corev1.Pod{old})
		after(time.Second)
		r.engine.SetDown(true)
		r.engine.Exit(string(old.UID), "main", 1, true)
		r.agent.Upsert(fresh)
		after(time.Minute)
		if n := len(r.callsWith("create-sandbox fresh")); n > 14 {
			t.Errorf("%d attempts in a minute", n)
		}
		r.engine.SetDown(false)
		after(12 * time.Second)
		if got := r.engine.Running(); !slices.Equal(got, []string{"fresh/main", "old/main"}) {
			t.Errorf("running %q", got)
		}
	})
}

func TestVolumeAndNetworkFailuresHeal(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var broken atomic.Bool
		broken.Store(true)
		r.volumes.PrepareErr = func(*corev1.Pod) error {
			if broken.Load() {
				return errors.New(`secret "x" not found`)
			}
			return nil
		}
		r.network.AttachErr = func() error {
			if broken.Load() {
				return errors.New("no addresses left")
			}
			return nil
		}
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		s := r.cluster.status(pod)
		if c := containerStatus(t, s, "main"); c.State.Waiting == nil || c.State.Waiting.Reason != "ContainerCreating" || condition(s, corev1.PodReadyToStartContainers).Status != corev1.ConditionFalse {
			t.Errorf("status %+v", s)
		}
		if r.cluster.eventCount("FailedMount: secret \"x\" not found") == 0 || r.cluster.eventCount("FailedCreatePodSandBox") == 0 {
			t.Errorf("events %q", r.cluster.events)
		}
		broken.Store(false)
		after(12 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodRunning {
			t.Errorf("phase %s", s.Phase)
		}
	})
}

func TestManyPodsComeAndGo(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Latency = 20 * time.Millisecond
		r.start()
		var all []*corev1.Pod
		for i := range 100 {
			all = append(all, newPod(fmt.Sprintf("p%d", i)))
		}
		begun := time.Now()
		r.agent.Set(all)
		for len(r.engine.Running()) < len(all) {
			after(5 * time.Millisecond)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("100 pods took %s", took)
		}
		for _, p := range all {
			r.agent.Upsert(deleting(p, 30))
		}
		begun = time.Now()
		for !r.engine.Empty() && time.Since(begun) < time.Minute {
			after(5 * time.Millisecond)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("removing them took %s", took)
		}
		synctest.Wait()
	})
}

func TestBindingAfterTheClaimRanOut(t *testing.T) {
	for _, late := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, time.Second} {
		bubble(t, func(t *testing.T, r *rig) {
			r.start()
			r.agent.Set(nil)
			pod := newPod("late")
			r.agent.Prepare(pod)
			after(pods.GrantTTL + late) // its sandbox is just being removed, or gone
			r.agent.Upsert(pod)
			after(2 * time.Second)
			if got := r.engine.Running(); !slices.Equal(got, []string{"late/main"}) {
				t.Errorf("%s after the claim ran out: running %q", late, got)
			}
			r.agent.Upsert(deleting(pod, 1))
			after(2 * time.Second)
			if !r.engine.Empty() {
				t.Error("not removed in the end")
			}
		})
	}
}

func TestPodDroppedByMistakeComesBack(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		r.agent.Set(nil) // from a replica that lags
		pod = pod.DeepCopy()
		pod.Status = r.cluster.status(pod)
		r.agent.Set([]*corev1.Pod{pod})
		after(2 * time.Second)
		c := containerStatus(t, r.cluster.status(pod), "main")
		if c.State.Running == nil || c.RestartCount != 1 || !c.Ready {
			t.Errorf("status %+v", c)
		}
	})
}

func TestEphemeralContainerRunsOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.Program = programs(map[string]podstest.Program{"debug": {RunFor: 5 * time.Second}})
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		pod = pod.DeepCopy()
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon(newContainer("debug")), TargetContainerName: "main"}}
		r.agent.Upsert(pod)
		after(time.Second)
		s := r.cluster.status(pod)
		debug := containerStatus(t, s, "debug")
		if debug.State.Running == nil {
			t.Fatalf("status %+v", debug)
		}
		spec, _ := r.engine.Spec(strings.TrimPrefix(debug.ContainerID, "containerd://"))
		if "containerd://"+spec.TargetContainerID != containerStatus(t, s, "main").ContainerID {
			t.Error("it does not join the container it was aimed at")
		}
		after(time.Minute)
		s = r.cluster.status(pod)
		if debug = containerStatus(t, s, "debug"); debug.State.Terminated == nil || debug.RestartCount != 0 || s.Phase != corev1.PodRunning {
			t.Errorf("status %+v", debug)
		}
	})
}

func TestChangedImageReplacesTheContainer(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		pod = pod.DeepCopy()
		pod.Generation, pod.Spec.Containers[0].Image = 2, "img:2"
		r.agent.Upsert(pod)
		after(2 * time.Second)
		s := r.cluster.status(pod)
		if c := containerStatus(t, s, "main"); c.Image != "img:2" || c.RestartCount != 1 || c.State.Running == nil || s.ObservedGeneration != 2 {
			t.Errorf("status %+v, generation %d", c, s.ObservedGeneration)
		}
	})
}

func TestReadinessGates(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web", func(p *corev1.Pod) { p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "lb"}} })
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		s := r.cluster.status(pod)
		if c := condition(s, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" || condition(s, corev1.ContainersReady).Status != corev1.ConditionTrue {
			t.Errorf("conditions %+v", s.Conditions)
		}
		pod = pod.DeepCopy()
		pod.Status.Conditions = []corev1.PodCondition{{Type: "lb", Status: corev1.ConditionTrue}}
		r.agent.Upsert(pod)
		after(time.Second)
		s = r.cluster.status(pod)
		if condition(s, corev1.PodReady).Status != corev1.ConditionTrue || condition(s, "lb").Status != corev1.ConditionTrue {
			t.Errorf("conditions %+v", s.Conditions)
		}
	})
}

func TestPodThatUsesTooMuchIsEvicted(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var full atomic.Bool
		r.volumes.PrepareErr = func(*corev1.Pod) error {
			if full.Load() {
				return &pods.EvictError{Message: "Usage of EmptyDir volume \"tmp\" exceeds the limit \"1Gi\". "}
			}
			return nil
		}
		r.volumes.Again = 10 * time.Second
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(25 * time.Second)
		full.Store(true)
		after(15 * time.Second)
		if s := r.cluster.status(pod); s.Phase != corev1.PodFailed || s.Reason != "Evicted" || !r.engine.Empty() || r.cluster.eventCount("Evicted") != 1 {
			t.Errorf("status %s %s, running %q", s.Phase, s.Reason, r.engine.Running())
		}
	})
}

func TestDeletedPodWithFinalizersGetsItsFinalStatus(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("job", policy(corev1.RestartPolicyNever), func(p *corev1.Pod) { p.Finalizers = []string{"batch.kubernetes.io/job-tracking"} })
		r.agent.Set([]*corev1.Pod{pod})
		after(time.Second)
		r.agent.Upsert(deleting(pod, 30))
		after(time.Second)
		if s := r.cluster.status(pod); !r.cluster.isDeleted(pod) || s.Phase != corev1.PodSucceeded || s.ContainerStatuses[0].State.Terminated == nil {
			t.Errorf("deleted %v, reported %s %+v", r.cluster.isDeleted(pod), s.Phase, s.ContainerStatuses)
		}
	})
}

// markUnready stores the pod as not ready, as the leader does while its node is not heard, and returns it.
func (r *rig) markUnready(pod *corev1.Pod) *corev1.Pod {
	marked := pod.DeepCopy()
	marked.Status = r.cluster.status(pod)
	for i := range marked.Status.Conditions {
		if marked.Status.Conditions[i].Type == corev1.PodReady {
			marked.Status.Conditions[i].Status = corev1.ConditionFalse
		}
	}
	r.cluster.mu.Lock()
	defer r.cluster.mu.Unlock()
	r.cluster.statuses[pod.UID] = marked.Status
	return marked
}

// TestReadinessThatIsTakenBackBeforeTheAnswer: what the leader writes after a report may be heard before the report's own answer.
func TestReadinessThatIsTakenBackBeforeTheAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod, marks := newPod("web"), 0
		r.cluster.answer = func(pod *corev1.Pod, s corev1.PodStatus) {
			if condition(s, corev1.PodReady).Status == corev1.ConditionTrue && marks == 0 {
				marks++
				r.agent.Upsert(r.markUnready(pod))
			}
		}
		r.agent.Set([]*corev1.Pod{pod})
		after(20 * time.Second)
		if marks == 0 || condition(r.cluster.status(pod), corev1.PodReady).Status != corev1.ConditionTrue {
			t.Errorf("marked %d times, the mark stands", marks)
		}
	})
}

// While a node was cut off, the leader has marked its pods not ready. The node is back, and nothing has changed on it: it must say so again.
func TestReadinessIsReportedAgainAfterSomebodyElseWroteIt(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		pod := newPod("web")
		r.agent.Set([]*corev1.Pod{pod})
		after(5 * time.Second)
		if condition(r.cluster.status(pod), corev1.PodReady).Status != corev1.ConditionTrue {
			t.Fatal("not ready")
		}
		marked := r.markUnready(pod)
		r.agent.Upsert(marked)
		after(5 * time.Second)
		if condition(r.cluster.status(pod), corev1.PodReady).Status != corev1.ConditionTrue {
			t.Error("the mark stands")
		}
	})
}
