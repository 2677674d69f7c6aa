package workload

import (
	"cmp"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const jobComponent = "job-controller"

// job is one Job being planned.
//
// A pod of a Job carries a finalizer until the Job has counted how it ended. Upstream notes the UIDs
// of pods under way in status.uncountedTerminatedPods, because counting and taking the finalizer away
// are two requests; here they are one transaction and that list stays empty. One that upstream has
// left behind is counted up.
type job struct {
	owner
	view *placement.View
	seen *batchv1.Job
	want *batchv1.Job // own copy: only status is ever written
	now  time.Time
	plan *placement.Plan

	pods      []*jobPod // by completion index, then name
	active    int32
	ready     int32
	stopping  int32 // terminating and not ended yet
	succeeded int32 // also those that this plan does not count yet
	failed    int32

	limit      int // completions of an indexed Job, 0 of others
	done       indexes
	lost       indexes         // failed for good, with a back-off limit per index
	successors map[int]*jobPod // last failed pod of an index that has no successor yet

	verdict *batchv1.JobCondition // why the Job ends, nil while it goes on
	more    bool                  // pods that have ended are left to count
	failure string                // why pods are missing, "" if nothing is in the way
	events  []placement.Event
}

// jobPod is one of the Job's pods.
type jobPod struct {
	pod     *corev1.Pod
	index   int  // -1 without a valid one
	tracked bool // has the finalizer, so it is not counted yet
	listed  bool // in status.uncountedTerminatedPods
	failed  bool
	removed bool // this plan deletes it
	gone    bool // this plan has deleted it, uncounted
	counted bool // this plan counts it and takes the finalizer away
	changed bool // this plan has written it already
}

func (p *jobPod) active() bool { return placement.Active(p.pod) && !p.removed && !p.gone }

// planJobRef plans the Job of a name, or what one that is gone has left.
func planJobRef(v *placement.View, key types.NamespacedName, now time.Time) placement.Plan {
	if seen, ok := v.Jobs.Get(key.Namespace, key.Name); ok {
		plan := PlanJob(v, seen, now)
		freePods(v, key, seen.UID, &plan)
		return plan
	}
	var plan placement.Plan
	freePods(v, key, "", &plan)
	return plan
}

// freePods takes the finalizer off pods whose Job of that name is gone: nobody counts them any more.
func freePods(v *placement.View, key types.NamespacedName, present types.UID, plan *placement.Plan) {
	var left []*corev1.Pod
	for _, p := range v.PodsOfJob(key) {
		if metav1.GetControllerOfNoCopy(p.Object).UID != present && tracked(p.Object) {
			left = append(left, p.Object)
		}
	}
	for _, pod := range left[:min(len(left), maxBurst)] {
		want := pod.DeepCopy()
		untrack(want)
		plan.Add(placement.Updating(placement.Update, pod, want))
	}
}

func tracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

func track(pod *corev1.Pod) {
	if !tracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
}

func untrack(pod *corev1.Pod) {
	pod.Finalizers = slices.DeleteFunc(pod.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
}

// PlanJob plans a Job's pods and status. Sources of the rules:
// kubernetes.io/docs/concepts/workloads/controllers/job, KEP-2214 (indexes), KEP-3329 (failure policy),
// KEP-3850 (back-off per index), KEP-3998 (success policy), KEP-3939 (pod replacement), KEP-592 (TTL).
func PlanJob(v *placement.View, seen *batchv1.Job, now time.Time) placement.Plan {
	var plan placement.Plan
	if c := finishedCondition(seen); c != nil {
		expire(seen, c, &plan, now)
	} else if by := seen.Spec.ManagedBy; by != nil && *by != batchv1.JobControllerName {
		return plan
	}
	j := &job{owner: newOwner(seen, jobKind, seen.Spec.Selector), view: v, seen: seen, want: seen.DeepCopy(), now: now, plan: &plan}
	mode := ptr.Deref(seen.Spec.CompletionMode, batchv1.NonIndexedCompletion)
	if mode != batchv1.NonIndexedCompletion && mode != batchv1.IndexedCompletion {
		plan.Say(j.warning(jobComponent, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown"))
		return plan
	}
	if mode == batchv1.IndexedCompletion {
		j.limit = int(ptr.Deref(seen.Spec.Completions, 0))
	}
	j.findPods()
	if finishedCondition(seen) != nil {
		j.letGo()
		return plan
	}
	j.tally()
	if seen.Status.StartTime == nil && !j.suspended() {
		j.want.Status.StartTime = j.time()
	}
	j.judge()
	if j.verdict != nil {
		j.stopAll()
	} else {
		j.goOn()
	}
	j.countPods()
	j.writeStatus()
	return plan
}

// expire deletes a Job whose time to live after its end has passed.
func expire(seen *batchv1.Job, ended *batchv1.JobCondition, plan *placement.Plan, now time.Time) {
	if seen.Spec.TTLSecondsAfterFinished == nil || seen.DeletionTimestamp != nil {
		return
	}
	at := ended.LastTransitionTime.Add(time.Duration(*seen.Spec.TTLSecondsAfterFinished) * time.Second)
	if now.Before(at) {
		plan.RecheckAt(at)
		return
	}
	plan.Add(placement.Change{
		Verb: placement.Delete, Object: seen, UID: seen.UID, ResourceVersion: seen.ResourceVersion,
		Propagation: ptr.To(metav1.DeletePropagationForeground),
	})
}

func (j *job) time() *metav1.Time { return ptr.To(metav1.NewTime(j.now)) }

func (j *job) suspended() bool { return ptr.Deref(j.seen.Spec.Suspend, false) }

func (j *job) perIndex() bool { return j.indexed() && j.seen.Spec.BackoffLimitPerIndex != nil }

// replacesFailedOnly tells whether a pod is replaced only when it has ended, not when it begins to.
func (j *job) replacesFailedOnly() bool {
	return j.seen.Spec.PodReplacementPolicy != nil && *j.seen.Spec.PodReplacementPolicy == batchv1.Failed
}

// findPods claims the Job's pods.
func (j *job) findPods() {
	uncounted := ptr.Deref(j.seen.Status.UncountedTerminatedPods, batchv1.UncountedTerminatedPods{})
	for candidate := range j.candidates(j.view) {
		pod := candidate.Object
		mine, change := j.claim(pod)
		if change {
			pod = settle(j.owner, j.plan, pod, mine)
			if mine {
				track(pod)
			} else {
				untrack(pod)
			}
		}
		if !mine {
			continue
		}
		p := &jobPod{pod: pod, index: indexOf(pod), tracked: tracked(pod), changed: change}
		if p.index >= j.limit {
			p.index = -1
		}
		p.listed = slices.Contains(uncounted.Succeeded, pod.UID) || slices.Contains(uncounted.Failed, pod.UID)
		p.failed = pod.Status.Phase == corev1.PodFailed ||
			!j.replacesFailedOnly() && pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded
		j.pods = append(j.pods, p)
	}
	slices.SortStableFunc(j.pods, func(a, b *jobPod) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.pod.Name, b.pod.Name))
	})
}

// counts tells whether the pod's end is still to be counted.
func (j *job) counts(p *jobPod) bool {
	return p.tracked && !p.listed && (!j.indexed() || p.index >= 0)
}

func (j *job) indexed() bool {
	return ptr.Deref(j.seen.Spec.CompletionMode, "") == batchv1.IndexedCompletion
}

// tally counts the pods and works out which indexes are done and lost.
func (j *job) tally() {
	uncounted := ptr.Deref(j.seen.Status.UncountedTerminatedPods, batchv1.UncountedTerminatedPods{})
	j.succeeded = j.seen.Status.Succeeded + int32(len(uncounted.Succeeded))
	j.failed = j.seen.Status.Failed + int32(len(uncounted.Failed))
	j.done = parseIndexes(j.seen.Status.CompletedIndexes, j.limit)
	j.lost = parseIndexes(ptr.Deref(j.seen.Status.FailedIndexes, ""), j.limit)
	var done, lost []int
	for _, p := range j.pods {
		switch {
		case p.active():
			j.active++
			if placement.Ready(p.pod) {
				j.ready++
			}
		case p.pod.DeletionTimestamp != nil && !placement.Finished(p.pod):
			j.stopping++
		}
		if p.tracked && p.index >= 0 && p.pod.Status.Phase == corev1.PodSucceeded {
			done = append(done, p.index)
		}
		if p.tracked && p.index >= 0 && j.perIndex() && j.losesIndex(p) {
			lost = append(lost, p.index)
		}
		if !j.counts(p) {
			continue
		}
		switch counted, _, _ := j.matchFailure(p.pod); {
		case p.pod.Status.Phase == corev1.PodSucceeded:
			j.succeeded++
		case p.failed && counted:
			j.failed++
		}
	}
	if j.indexed() {
		j.done, j.lost = j.done.with(done...), j.lost.with(lost...)
		j.succeeded = int32(j.done.total())
	}
	j.findSuccessors()
}

// goOn starts and ends pods so that as many run as should, and sees whether the Job is done.
func (j *job) goOn() {
	managed := j.seen.DeletionTimestamp == nil
	if managed {
		j.manage()
	}
	completions := j.seen.Spec.Completions
	switch {
	case j.active == 0 && (completions == nil && j.succeeded > 0 || completions != nil && j.succeeded >= *completions):
		j.verdict = j.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	case managed:
		j.noteSuspension()
	}
}

// noteSuspension keeps the Suspended condition. While a Job is suspended its deadline does not run.
func (j *job) noteSuspension() {
	if j.suspended() {
		if j.setCondition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended") {
			j.tell(corev1.EventTypeNormal, "Suspended", "Job suspended")
			j.want.Status.StartTime = nil
		}
		return
	}
	if conditionOfJob(j.want, batchv1.JobSuspended) != nil && j.setCondition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed") {
		j.tell(corev1.EventTypeNormal, "Resumed", "Job resumed")
		j.want.Status.StartTime = j.time()
	}
}

func (j *job) tell(kind, reason, message string) {
	j.events = append(j.events, placement.Event{Regarding: j.seen, Type: kind, Reason: reason, Message: message, Component: jobComponent})
}

// stopAll deletes what still runs of a Job that has its verdict.
func (j *job) stopAll() {
	left := maxBurst
	for _, p := range j.pods {
		if p.active() && left > 0 {
			j.remove(p)
			left--
		}
	}
}

// countPods counts the pods that have ended, each in the transaction that takes its finalizer away.
func (j *job) countPods() {
	s := &j.want.Status
	if s.UncountedTerminatedPods != nil {
		s.Succeeded += int32(len(s.UncountedTerminatedPods.Succeeded))
		s.Failed += int32(len(s.UncountedTerminatedPods.Failed))
	}
	s.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	done := parseIndexes(j.seen.Status.CompletedIndexes, j.limit)
	left := maxBurst
	var completed []int
	for _, p := range j.pods {
		if !p.tracked || !p.listed && !j.countable(p) {
			continue
		}
		if left == 0 && !p.listed {
			j.more = true
			break
		}
		left = max(left-1, 0)
		counted, _, _ := j.matchFailure(p.pod)
		switch {
		case p.pod.Status.Phase == corev1.PodSucceeded:
			if j.indexed() && p.index >= 0 {
				completed = append(completed, p.index)
			} else if j.counts(p) {
				s.Succeeded++
			}
		case j.counts(p) && counted && (p.failed || j.verdict != nil && j.verdict.Type != batchv1.JobSuccessCriteriaMet):
			s.Failed++ // what a failed Job stops counts as failed
		}
		p.counted = true
	}
	if j.indexed() {
		done = done.with(completed...)
		s.Succeeded, s.CompletedIndexes = int32(done.total()), done.String()
		if j.perIndex() {
			s.FailedIndexes = ptr.To(j.lost.String())
		}
	}
	for _, p := range j.pods {
		if p.counted {
			j.untrack(p)
		}
		if p.removed {
			j.delete(p)
		}
	}
}

// countable tells whether the pod's fate is sealed.
func (j *job) countable(p *jobPod) bool {
	if j.seen.DeletionTimestamp != nil || j.verdict != nil || p.pod.Status.Phase == corev1.PodSucceeded || p.removed {
		return true
	}
	return p.failed && (p.index < 0 || j.successors[p.index] != p)
}

// letGo takes the finalizer off what is left of a finished Job.
func (j *job) letGo() {
	left := maxBurst
	for _, p := range j.pods {
		if p.tracked && left > 0 {
			j.untrack(p)
			left--
		}
	}
}

// writeStatus works out the status after the plan.
func (j *job) writeStatus() {
	s := &j.want.Status
	s.Active, s.Ready, s.Terminating = j.active, ptr.To(j.ready), ptr.To(j.stopping)
	s.Conditions = withFailure(s.Conditions, j.failure, batchv1.JobCondition{
		Type: replicaFailure, Status: corev1.ConditionTrue, LastProbeTime: metav1.NewTime(j.now), LastTransitionTime: metav1.NewTime(j.now),
		Reason: failedCreate, Message: j.failure,
	}, func(c batchv1.JobCondition) bool { return c.Type == replicaFailure })
	if j.verdict != nil {
		j.conclude()
	}
	if apiequality.Semantic.DeepEqual(j.seen.Status, *s) {
		return
	}
	j.plan.Add(placement.Updating(placement.UpdateStatus, j.seen, j.want, j.events...))
}
