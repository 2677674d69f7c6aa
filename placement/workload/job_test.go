package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

func newJobs(t fataler, o *batchv1.Job) ourJobs {
	t.Helper()
	w := ourJobs{world.New(), t}
	w.Put(o)
	return w
}

// end runs and ends the first pod that still can.
func (w ourJobs) end(code int32) {
	for _, p := range w.pods() {
		if placement.Active(p) {
			w.editPod(p.Name, func(p *corev1.Pod) {
				p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodSucceeded
				if code != 0 {
					p.Status.Phase = corev1.PodFailed
				}
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: code, FinishedAt: metav1.NewTime(w.Now),
				}}}}
			})
			return
		}
	}
}

func (w ourJobs) conditions() string {
	var list []string
	for _, c := range w.job().Status.Conditions {
		list = append(list, fmt.Sprintf("%s=%s", c.Type, c.Status))
	}
	return strings.Join(list, " ")
}

func TestAnUnknownCompletionModeIsSaid(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.CompletionMode = ptr.To[batchv1.CompletionMode]("Shuffled") }))
	w.rest()
	if want := []string{"UnknownCompletionMode: Skipped Job sync because completion mode is unknown"}; len(w.pods()) > 0 || !slices.Equal(w.Events, want) {
		t.Errorf("%d pods, events %q", len(w.pods()), w.Events)
	}
}

func TestIndexedJobRuns(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) {
		j.Spec.Completions, j.Spec.Parallelism, j.Spec.CompletionMode = ptr.To[int32](3), ptr.To[int32](2), ptr.To(batchv1.IndexedCompletion)
	}))
	w.rest()
	pods := w.pods()
	if len(pods) != 2 || pods[0].Annotations[batchv1.JobCompletionIndexAnnotation] != "0" || pods[1].Labels[batchv1.JobCompletionIndexAnnotation] != "1" {
		t.Fatalf("pods %v", pods)
	}
	p := pods[1]
	if !strings.HasPrefix(p.Name, "work-1-") || p.Spec.Hostname != "work-1" || !tracked(p) || p.Spec.Containers[0].Env[0].Name != "JOB_COMPLETION_INDEX" {
		t.Errorf("pod %s: host %s, finalizers %v, env %v", p.Name, p.Spec.Hostname, p.Finalizers, p.Spec.Containers[0].Env)
	}
	for range 3 {
		w.end(0)
		w.rest()
	}
	s := w.job().Status
	if got := w.conditions(); got != "SuccessCriteriaMet=True Complete=True" || s.CompletedIndexes != "0-2" || s.Succeeded != 3 || s.CompletionTime == nil || s.Active != 0 {
		t.Errorf("%s, %+v", got, s)
	}
	if slices.ContainsFunc(w.pods(), tracked) {
		t.Error("a pod keeps its finalizer")
	}
	if want := "Completed: Job completed"; !slices.Contains(w.Events, want) {
		t.Errorf("events %q", w.Events)
	}
}

// TestJobBackoffDoubles: after each failure in a row the plan asks to be woken twice as late.
func TestJobBackoffDoubles(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr.To[int32](3) }))
	w.rest()
	for _, want := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
		failed := w.Now
		w.end(1)
		again := w.rest()
		if got := again.Sub(failed); got != want {
			t.Fatalf("asks again after %s, want %s", got, want)
		}
		w.Now = again
		w.rest()
		if w.job().Status.Active != 1 {
			t.Fatal("no new pod after the back-off")
		}
	}
	w.end(1)
	w.rest()
	if got := w.conditions(); got != "FailureTarget=True Failed=True" || w.job().Status.Failed != 4 {
		t.Errorf("%s, %d failed", got, w.job().Status.Failed)
	}
}

// TestClockSetBack: a failure in the future does not hold a Job up for longer than its back-off.
func TestClockSetBack(t *testing.T) {
	w := newJobs(t, makeJob())
	w.rest()
	w.end(1)
	w.Now = w.Now.Add(-24 * time.Hour)
	if wait := w.rest().Sub(w.Now); wait > 10*time.Second {
		t.Errorf("waits %s", wait)
	}
}

func TestJobGoesAfterItsTimeToLive(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.TTLSecondsAfterFinished = ptr.To[int32](100) }))
	w.rest()
	w.end(0)
	ended := w.Now
	again := w.rest()
	if !again.Equal(ended.Add(100 * time.Second)) {
		t.Fatalf("asks again at %s, it ended at %s", again, ended)
	}
	w.Now = again
	plan := Plan(w.View, placement.Ref{Kind: placement.KindJob, NamespacedName: keyOf(w.job())}, w.Now)
	if len(plan.Changes) != 1 || plan.Changes[0].Verb != placement.Delete || *plan.Changes[0].Propagation != metav1.DeletePropagationForeground {
		t.Errorf("plan %+v", plan)
	}
}

// TestPodsOfAJobThatIsGone: nobody counts them any more, so nothing must keep them.
func TestPodsOfAJobThatIsGone(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.Parallelism = ptr.To[int32](3) }))
	w.rest()
	w.Remove(w.job())
	if !slices.Contains(w.View.TakeDirty(), placement.Ref{Kind: placement.KindJob, NamespacedName: keyOf(makeJob())}) {
		t.Error("the Job's end asks for no plan")
	}
	w.rest()
	if n := len(w.pods()); n != 3 || slices.ContainsFunc(w.pods(), tracked) {
		t.Errorf("%d pods, some with the finalizer", n)
	}
}

func TestForeignJobsAreLeftAlone(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.ManagedBy = ptr.To("example.com/queue") }))
	if plan := w.plan(); len(plan.Changes) != 0 {
		t.Errorf("%d changes", len(plan.Changes))
	}
}

// TestUncountedPodsOfUpstreamAreCounted: a Job that upstream's controller has worked on goes on without losing or doubling a count.
func TestUncountedPodsOfUpstreamAreCounted(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) { j.Spec.Completions = ptr.To[int32](5) }))
	w.rest()
	w.end(0)
	w.editJob(func(j *batchv1.Job) {
		j.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{Succeeded: []types.UID{w.pods()[0].UID, "gone-already"}}
	})
	w.rest()
	if s := w.job().Status; s.Succeeded != 2 || len(s.UncountedTerminatedPods.Succeeded) != 0 || slices.ContainsFunc(w.pods()[:1], tracked) == placement.Finished(w.pods()[0]) {
		t.Errorf("status %+v", s)
	}
}

func TestAMillionIndexes(t *testing.T) {
	w := newJobs(t, makeJob(func(j *batchv1.Job) {
		j.Spec.Completions, j.Spec.Parallelism, j.Spec.CompletionMode = ptr.To[int32](1_000_000), ptr.To[int32](1_000_000), ptr.To(batchv1.IndexedCompletion)
	}))
	for range 5 {
		w.plan()
	}
	if n := len(w.pods()); n != maxWaiting {
		t.Errorf("%d pods wait, want %d", n, maxWaiting)
	}
	if c := w.job().Status.Conditions; len(c) != 1 || c[0].Type != replicaFailure || !strings.Contains(c[0].Message, "1000 pods wait for a node") {
		t.Errorf("conditions %+v", c)
	}
}

// TestIndexesAreASet compares runs of indexes with a plain set.
func TestIndexesAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 40
		set := rapid.SliceOfDistinct(rapid.IntRange(0, limit-1), rapid.ID).Draw(t, "set")
		other := rapid.SliceOfDistinct(rapid.IntRange(0, limit-1), rapid.ID).Draw(t, "other")
		x := indexes(nil).with(set...)
		if parsed := parseIndexes(x.String(), limit); !slices.Equal(parsed, x) {
			t.Fatalf("%q reads back as %q", x, parsed)
		}
		var missing []int
		common := 0
		for i := range limit {
			if in := slices.Contains(set, i); in != x.has(i) {
				t.Fatalf("%q has %d: %v", x, i, x.has(i))
			} else if !in {
				missing = append(missing, i)
			} else if slices.Contains(other, i) {
				common++
			}
		}
		y := indexes(nil).with(other...)
		if got := x.missing(5, limit); !slices.Equal(got, missing[:min(5, len(missing))]) {
			t.Fatalf("%q misses %v", x, got)
		}
		if x.total() != len(set) || x.common(y) != common || x.union(y).total() != len(set)+len(other)-common {
			t.Fatalf("%q and %q: %d, %d in common, %d in all", x, y, x.total(), x.common(y), x.union(y).total())
		}
	})
}

// FuzzParseIndexes: whatever is written there, what is read is a set below the limit.
func FuzzParseIndexes(f *testing.F) {
	for _, text := range []string{"", "0", "1,3-5,7", "5-1", "-1", "a,2-b,99999999999999999999", "0-4,3-9"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		x := parseIndexes(text, 100)
		for i, s := range x {
			if s.first < 0 || s.last >= 100 || s.last < s.first || i > 0 && s.first <= x[i-1].last+1 {
				t.Fatalf("%q reads as %v", text, x)
			}
		}
	})
}
