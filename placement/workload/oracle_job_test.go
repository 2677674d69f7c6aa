package workload

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// jobWorld is what events happen to: our world, or upstream's.
type jobWorld interface {
	pods() []*corev1.Pod
	editPod(name string, edit func(*corev1.Pod))
	deletePod(name string)
	job() *batchv1.Job
	editJob(edit func(*batchv1.Job))
}

// ourJobs is a world with one Job named work, planned by this package.
type ourJobs struct {
	*world.World
	t fataler
}

func (w ourJobs) job() *batchv1.Job {
	j, _ := w.View.Jobs.Get("default", "work")
	return j
}

func (w ourJobs) pods() []*corev1.Pod { return w.Pods("default") }

func (w ourJobs) editPod(name string, edit func(*corev1.Pod)) {
	if p, ok := w.View.Pod("default", name); ok {
		if pod := w.EditPod(p.Object, edit); pod.DeletionTimestamp != nil && len(pod.Finalizers) == 0 && placement.Finished(pod) {
			w.Remove(pod)
		}
	}
}

func (w ourJobs) deletePod(name string) {
	if p, ok := w.View.Pod("default", name); ok {
		w.DeleteNow(p.Object)
	}
}

func (w ourJobs) editJob(edit func(*batchv1.Job)) {
	j := w.job().DeepCopy()
	edit(j)
	w.Put(j)
}

func (w ourJobs) plan() placement.Plan {
	w.t.Helper()
	plan := Plan(w.View, placement.Ref{Kind: placement.KindJob, NamespacedName: types.NamespacedName{Namespace: "default", Name: "work"}}, w.Now)
	if err := w.Apply(plan); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.Now = w.Now.Add(time.Microsecond) // no two plans are made at one time
	return plan
}

// rest plans until nothing changes any more, and tells when the last plan wants to be asked again.
func (w ourJobs) rest() time.Time {
	w.t.Helper()
	for range 100 {
		if plan := w.plan(); len(plan.Changes) == 0 {
			return plan.Recheck
		}
	}
	w.t.Fatalf("100 plans and still no rest")
	return time.Time{}
}

// live lets time pass, and plans whenever a plan has asked for it.
func (w ourJobs) live(length time.Duration) {
	end := time.Now().Add(length)
	for {
		w.Now = time.Now()
		again := w.rest()
		if again.IsZero() || again.After(end) {
			time.Sleep(time.Until(end))
			return
		}
		time.Sleep(time.Until(again) + time.Millisecond)
	}
}

// upstreamJobs is the same under upstream's Job controller, with a client that knows finalizers and grace.
type upstreamJobs struct {
	client  *fake.Clientset
	tracker clienttesting.ObjectTracker
	version *versions
	t       fataler
}

// versions hands out the world's resource versions. Upstream's controller writes several pods at once, and stands still until it has seen
// the highest version that it wrote: whoever takes a version therefore stores what it is for before another is taken.
type versions struct {
	sync.Mutex
	last int
}

// next must be called with the lock held until the object is stored.
func (v *versions) next() string {
	v.last++
	return strconv.Itoa(v.last)
}

// put stores a pod under a new version, and removes it if nothing keeps it any more. Upstream takes versions for the order of events, so
// that a deletion must have a new one too.
func (u upstreamJobs) put(p *corev1.Pod) {
	u.version.Lock()
	defer u.version.Unlock()
	p.ResourceVersion = u.version.next()
	if err := u.tracker.Update(podResource, p, "default"); err != nil {
		u.t.Fatalf("%v", err)
	}
	if p.DeletionTimestamp != nil && len(p.Finalizers) == 0 && (p.Spec.NodeName == "" || placement.Finished(p)) {
		_ = u.tracker.Delete(podResource, "default", p.Name)
	}
}

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

func startUpstreamJobs(ctx context.Context, t fataler, o *batchv1.Job) upstreamJobs {
	t.Helper()
	client := fake.NewSimpleClientset() //nolint:staticcheck // the newer one needs schemas of all kinds
	u := upstreamJobs{client, client.Tracker(), &versions{}, t}
	client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		u.version.Lock()
		defer u.version.Unlock()
		pod := action.(clienttesting.CreateAction).GetObject().(*corev1.Pod)
		pod.ResourceVersion = u.version.next()
		pod.Name, pod.UID = fmt.Sprintf("%s%05d", pod.GenerateName, u.version.last), types.UID("pod-"+pod.ResourceVersion)
		pod.Namespace, pod.CreationTimestamp, pod.Status.Phase = "default", metav1.Now(), corev1.PodPending
		return clienttesting.ObjectReaction(u.tracker)(action)
	})
	client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		u.deletePod(action.(clienttesting.DeleteAction).GetName())
		return true, nil, nil
	})
	client.PrependReactor("patch", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		_, patched, err := clienttesting.ObjectReaction(u.tracker)(action)
		if err == nil {
			u.put(patched.(*corev1.Pod))
		}
		return true, patched, err
	})
	if err := u.tracker.Add(o.DeepCopy()); err != nil {
		t.Fatalf("%v", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := upstream.NewController(ctx, client, factory.Core().V1().Pods(), factory.Batch().V1().Jobs(), nil, nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	synctest.Wait() // until the informers watch, too: what happened between their lists and their watches they would never hear of
	go controller.Run(ctx, 1)
	return u
}

func (u upstreamJobs) pods() []*corev1.Pod {
	list, err := u.tracker.List(podResource, corev1.SchemeGroupVersion.WithKind("Pod"), "default")
	if err != nil {
		u.t.Fatalf("%v", err)
	}
	var pods []*corev1.Pod
	for _, p := range list.(*corev1.PodList).Items {
		pods = append(pods, p.DeepCopy())
	}
	return pods
}

func (u upstreamJobs) editPod(name string, edit func(*corev1.Pod)) {
	for _, p := range u.pods() {
		if p.Name == name {
			edit(p)
			u.put(p)
		}
	}
}

func (u upstreamJobs) deletePod(name string) {
	for _, p := range u.pods() {
		if p.Name == name && p.DeletionTimestamp == nil {
			p.DeletionTimestamp = ptr.To(metav1.NewTime(time.Now().Add(30 * time.Second)))
			u.put(p)
		}
	}
}

func (u upstreamJobs) job() *batchv1.Job {
	j, err := u.client.BatchV1().Jobs("default").Get(context.Background(), "work", metav1.GetOptions{})
	if err != nil {
		u.t.Fatalf("%v", err)
	}
	return j
}

func (u upstreamJobs) editJob(edit func(*batchv1.Job)) {
	u.version.Lock()
	defer u.version.Unlock()
	j := u.job()
	edit(j)
	j.ResourceVersion = u.version.next()
	j.Generation++
	if _, err := u.client.BatchV1().Jobs("default").Update(context.Background(), j, metav1.UpdateOptions{}); err != nil {
		u.t.Fatalf("%v", err)
	}
}

var podNames = regexp.MustCompile(`[pP]od default/work-\S+ `)

// podFace is what makes one pod of a Job different from another; names are not.
func podFace(p *corev1.Pod) string {
	restarts := int32(0)
	for _, s := range p.Status.ContainerStatuses {
		restarts += s.RestartCount
	}
	return fmt.Sprintf("%3d %s node %q ready %v stopping %v tracked %v restarts %d failures %s/%s host %q label %q", indexOf(p), p.Status.Phase, p.Spec.NodeName,
		placement.Ready(p), p.DeletionTimestamp != nil, tracked(p), restarts, p.Annotations[batchv1.JobIndexFailureCountAnnotation],
		p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation], p.Spec.Hostname, p.Labels[batchv1.JobCompletionIndexAnnotation])
}

// byFace lists the pods so that equal worlds have equal lists.
func byFace(w jobWorld) []*corev1.Pod {
	pods := w.pods()
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(podFace(a)+a.Name, podFace(b)+b.Name) })
	return pods
}

// jobPicture is everything that users see of the Job, but names and times.
func jobPicture(w jobWorld) string {
	var b strings.Builder
	s := w.job().Status
	// Upstream may forget to write the start down of a Job that is to fail, and of one that succeeds while it is suspended: the API, which
	// is not in this world, would refuse the latter.
	suspended := conditionOfJob(w.job(), batchv1.JobSuspended)
	unwritten := conditionOfJob(w.job(), batchv1.JobFailureTarget) != nil || s.CompletionTime != nil && suspended != nil && suspended.Status == corev1.ConditionTrue
	fmt.Fprintf(&b, "active %d ready %d terminating %d succeeded %d failed %d completed %q lost %q started %v ended %v\n", s.Active, ptr.Deref(s.Ready, -1),
		ptr.Deref(s.Terminating, -1), s.Succeeded, s.Failed, s.CompletedIndexes, ptr.Deref(s.FailedIndexes, "none"), s.StartTime != nil || unwritten, s.CompletionTime != nil)
	if u := s.UncountedTerminatedPods; u == nil || len(u.Succeeded)+len(u.Failed) > 0 {
		fmt.Fprintf(&b, "uncounted %v\n", u)
	}
	for _, c := range s.Conditions {
		fmt.Fprintf(&b, "%s %s %s %s\n", c.Type, c.Status, c.Reason, podNames.ReplaceAllString(c.Message, "a pod "))
	}
	for _, p := range byFace(w) {
		b.WriteString(podFace(p) + "\n")
	}
	return b.String()
}

const bubbles = 15

// TestJobsAreUpstreams drives two equal worlds through the same events, one by our plans and one by upstream's
// controller, and compares everything after each. Time is the bubble's, in which a property has a day: some twenty cases.
func TestJobsAreUpstreams(t *testing.T) {
	handlers := utilruntime.ErrorHandlers
	utilruntime.ErrorHandlers = nil // one of them sleeps by a clock from outside of the bubble
	defer func() { utilruntime.ErrorHandlers = handlers }()
	for range bubbles {
		synctest.Test(t, func(t *testing.T) {
			rapid.Check(struct{ testing.TB }{t}, playJob) // the test's own deadline must not be asked for in a bubble
		})
	}
}

func playJob(t *rapid.T) {
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	defer synctest.Wait()
	defer cancel()
	o := genJob(t)
	ours := ourJobs{world.New(), t}
	ours.Now = time.Now()
	ours.Put(o)
	theirs := startUpstreamJobs(ctx, t, o)
	for range rapid.IntRange(1, 14).Draw(t, "steps") {
		ours.live(11 * time.Minute) // all back-off is over, and upstream has done what it puts off
		synctest.Wait()
		if got, want := jobPicture(ours), jobPicture(theirs); got != want {
			t.Fatalf("ours:\n%s\nupstream's:\n%s", got, want)
		}
		event := genJobEvent(t, ours)
		event(ours)
		event(theirs)
	}
}

func genJob(t *rapid.T) *batchv1.Job {
	j := makeJob()
	j.Spec.Parallelism = ptr.To(rapid.Int32Range(0, 4).Draw(t, "parallelism"))
	j.Spec.BackoffLimit = ptr.To(rapid.Int32Range(0, 4).Draw(t, "backoffLimit"))
	if rapid.Bool().Draw(t, "has completions") {
		j.Spec.Completions = ptr.To(rapid.Int32Range(0, 6).Draw(t, "completions"))
	}
	if rapid.Bool().Draw(t, "indexed") {
		j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion)
		if j.Spec.Completions == nil {
			j.Spec.Completions = ptr.To[int32](3)
		}
		if rapid.Bool().Draw(t, "per index") {
			j.Spec.BackoffLimit, j.Spec.BackoffLimitPerIndex = ptr.To[int32](1<<31-1), ptr.To(rapid.Int32Range(0, 2).Draw(t, "backoffLimitPerIndex"))
			j.Spec.MaxFailedIndexes = rapid.SampledFrom([]*int32{nil, ptr.To[int32](0), ptr.To[int32](1)}).Draw(t, "maxFailedIndexes")
			j.Spec.PodReplacementPolicy = ptr.To(batchv1.TerminatingOrFailed)
		}
		if rapid.IntRange(0, 3).Draw(t, "success policy") == 0 {
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{
				{SucceededIndexes: ptr.To("0,2-3"), SucceededCount: ptr.To[int32](1)}, {SucceededCount: ptr.To[int32](2)},
			}}
		}
	}
	if rapid.IntRange(0, 2).Draw(t, "failure policy") == 0 {
		j.Spec.PodReplacementPolicy = ptr.To(batchv1.Failed)
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				ContainerName: rapid.SampledFrom([]*string{nil, ptr.To("c"), ptr.To("other")}).Draw(t, "container"),
				Operator:      batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42},
			}},
			{Action: batchv1.PodFailurePolicyActionCount, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				Operator: batchv1.PodFailurePolicyOnExitCodesOpNotIn, Values: []int32{7, 42},
			}},
			{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
		}}
		if j.Spec.BackoffLimitPerIndex != nil {
			j.Spec.PodFailurePolicy.Rules = append(j.Spec.PodFailurePolicy.Rules, batchv1.PodFailurePolicyRule{
				Action: batchv1.PodFailurePolicyActionFailIndex, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{7}},
			})
		}
	} else if j.Spec.PodReplacementPolicy == nil {
		j.Spec.PodReplacementPolicy = ptr.To(rapid.SampledFrom([]batchv1.PodReplacementPolicy{batchv1.TerminatingOrFailed, batchv1.Failed}).Draw(t, "replacement"))
		if rapid.IntRange(0, 3).Draw(t, "restart policy") == 0 && j.Spec.BackoffLimitPerIndex == nil {
			j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		}
	}
	if rapid.IntRange(0, 4).Draw(t, "deadline") == 0 {
		j.Spec.ActiveDeadlineSeconds = ptr.To[int64](4600) // when all back-off is over: that of pods that are gone is forgotten here
	}
	// Upstream ends a suspended Job that has nothing to do without a start time, which the API refuses.
	j.Spec.Suspend = ptr.To(rapid.IntRange(0, 3).Draw(t, "suspended") == 0 && ptr.Deref(j.Spec.Completions, 1) > 0)
	return j
}

// genJobEvent draws something that can happen to any world in the state of this one.
func genJobEvent(t *rapid.T, w jobWorld) func(jobWorld) {
	spec := func(edit func(*batchv1.Job)) func(jobWorld) { return func(w jobWorld) { w.editJob(edit) } }
	at := 0
	if n := len(w.pods()); n > 0 {
		at = rapid.IntRange(0, n-1).Draw(t, "pod")
	}
	onPod := func(act func(jobWorld, string)) func(jobWorld) {
		return func(w jobWorld) {
			if pods := byFace(w); len(pods) > 0 {
				act(w, pods[at].Name)
			}
		}
	}
	edit := func(change func(*corev1.Pod)) func(jobWorld) {
		return onPod(func(w jobWorld, name string) { w.editPod(name, change) })
	}
	switch kind := rapid.IntRange(0, 11).Draw(t, "event"); kind {
	case 0:
		// Which of equal pods upstream gives up is chance: all or none.
		n := rapid.Int32Range(0, 4).Draw(t, "parallelism")
		return spec(func(j *batchv1.Job) {
			if n == 0 || n > *j.Spec.Parallelism {
				j.Spec.Parallelism = &n
			}
		})
	case 1:
		return spec(func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(!ptr.Deref(j.Spec.Suspend, false)) })
	case 2:
		return onPod(func(w jobWorld, name string) { w.deletePod(name) })
	case 3:
		restarts := rapid.Int32Range(0, 3).Draw(t, "restarts")
		return edit(func(p *corev1.Pod) {
			if !placement.Finished(p) {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: restarts}}
			}
		})
	case 4, 5:
		return edit(runPod)
	case 6, 7, 8:
		return edit(func(p *corev1.Pod) { runPod(p); endPod(p, 0) })
	default:
		code := rapid.SampledFrom([]int32{1, 1, 1, 7, 42}).Draw(t, "exit code")
		disrupted := rapid.IntRange(0, 4).Draw(t, "disrupted") == 0
		return edit(func(p *corev1.Pod) {
			if placement.Finished(p) {
				return
			}
			runPod(p)
			if disrupted {
				p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
			}
			endPod(p, code)
		})
	}
}

func runPod(p *corev1.Pod) {
	if !placement.Finished(p) && p.DeletionTimestamp == nil {
		p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodRunning
		world.SetReady(p, true, time.Now())
	}
}

// endPod ends a pod as its node does.
func endPod(p *corev1.Pod, code int32) {
	if placement.Finished(p) || p.Spec.NodeName == "" {
		return
	}
	p.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		p.Status.Phase = corev1.PodFailed
	}
	world.SetReady(p, false, time.Now())
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, FinishedAt: metav1.NewTime(time.Now()),
	}}}}
}

// makeJob is one as the API server would have defaulted it.
func makeJob(edits ...func(*batchv1.Job)) *batchv1.Job {
	j := &batchv1.Job{}
	j.Name, j.Namespace, j.UID = "work", "default", "job-uid"
	set := map[string]string{batchv1.ControllerUidLabel: "job-uid", batchv1.JobNameLabel: "work"}
	j.Spec = batchv1.JobSpec{
		Parallelism: ptr.To[int32](1), BackoffLimit: ptr.To[int32](6), CompletionMode: ptr.To(batchv1.NonIndexedCompletion),
		Suspend: ptr.To(false), Selector: &metav1.LabelSelector{MatchLabels: set},
	}
	j.Spec.Template.Labels = set
	j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	j.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "v1"}}
	for _, edit := range edits {
		edit(j)
	}
	return j
}
