package workload

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// indexEnv tells an indexed pod's containers their index.
const indexEnv = "JOB_COMPLETION_INDEX"

// indexOf is the completion index that a pod carries, -1 without one.
func indexOf(pod *corev1.Pod) int {
	if i, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation]); err == nil && i >= 0 {
		return i
	}
	return -1
}

// manage brings the running pods to the number that should run. A step either deletes or creates.
func (j *job) manage() {
	if j.suspended() {
		j.discard(j.surplus(int(j.active)))
		return
	}
	want := ptr.Deref(j.seen.Spec.Parallelism, 1)
	if completions := j.seen.Spec.Completions; completions != nil {
		want = max(min(want, *completions-j.succeeded), 0)
	} else if j.succeeded > 0 {
		want = j.active // a first success has come: those that run may finish
	}
	if surplus := j.surplus(int(max(j.active-want, 0))); len(surplus) > 0 {
		j.discard(surplus)
		return
	}
	missing := int(want - j.active)
	if j.replacesFailedOnly() {
		missing -= int(j.stopping)
	}
	if missing <= 0 {
		return
	}
	if !j.perIndex() {
		if at := j.backoff(); at.After(j.now) {
			j.plan.RecheckAt(at)
			return
		}
	}
	waiting := 0
	for _, p := range j.pods {
		if p.active() && p.pod.Spec.NodeName == "" {
			waiting++
		}
	}
	count := min(missing, quotaOf(j.view, j.seen.UID, waiting, j.plan, j.now))
	j.failure = shortage(j.view, j.seen.UID, missing-count, waiting)
	names := placement.NewNames(string(j.seen.UID), j.now.UTC().Format(time.RFC3339Nano))
	if !j.indexed() {
		for range count {
			j.create(names, -1)
		}
		return
	}
	for _, index := range j.pendingIndexes(count) {
		j.create(names, index)
	}
}

// pendingIndexes are the lowest indexes that a pod may be created for now.
func (j *job) pendingIndexes(count int) []int {
	busy := j.done.union(j.lost)
	var held []int
	for _, p := range j.pods {
		stops := p.pod.DeletionTimestamp != nil && !placement.Finished(p.pod)
		if p.index >= 0 && (p.active() || stops && j.replacesFailedOnly()) {
			held = append(held, p.index)
		}
	}
	list := busy.with(held...).missing(count, j.limit)
	return slices.DeleteFunc(list, func(index int) bool {
		last := j.successors[index]
		if last == nil {
			return false
		}
		at := j.retryAt(failuresOf(last.pod, batchv1.JobIndexFailureCountAnnotation)+
			failuresOf(last.pod, batchv1.JobIndexIgnoredFailureCountAnnotation)+1, finishedAt(last.pod))
		if at.After(j.now) {
			j.plan.RecheckAt(at)
			return true
		}
		return false
	})
}

// surplus chooses at least that many running pods to delete: those without an index of their own, then
// those that have got the least far.
func (j *job) surplus(atLeast int) []*jobPod {
	var rest, surplus []*jobPod
	byIndex := map[int]*jobPod{}
	running := slices.DeleteFunc(slices.Clone(j.pods), func(p *jobPod) bool { return !p.active() })
	slices.SortStableFunc(running, func(a, b *jobPod) int { return compareProgress(a.pod, b.pod) })
	for _, p := range slices.Backward(running) { // the furthest first
		switch {
		case !j.indexed():
			rest = append(rest, p)
		case p.index < 0 || byIndex[p.index] != nil:
			surplus = append(surplus, p)
		default:
			byIndex[p.index] = p
			rest = append(rest, p)
		}
	}
	slices.Reverse(rest)
	if more := atLeast - len(surplus); more > 0 {
		surplus = append(surplus, rest[:min(more, len(rest))]...)
	}
	return surplus[:min(len(surplus), maxBurst)]
}

// create adds a pod.
func (j *job) create(names *placement.Names, index int) {
	pod := podFromTemplate(&j.seen.Spec.Template, j.owner)
	if index >= 0 {
		j.giveIndex(pod, index)
	}
	if !tracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	for pod.Name == "" {
		name := generatedName(pod.GenerateName, names.Suffix())
		if _, taken := j.view.Pod(pod.Namespace, name); !taken {
			pod.Name = name
		}
	}
	pod.UID = names.UID()
	j.active++
	j.plan.Add(placement.Change{Verb: placement.Create, Object: pod, Events: []placement.Event{{
		Regarding: j.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulCreate", Message: "Created pod: " + pod.Name, Component: jobComponent,
	}}})
}

// giveIndex makes a pod that of an index, and hands down how often the index has failed.
func (j *job) giveIndex(pod *corev1.Pod, index int) {
	text := strconv.Itoa(index)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = text
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = text
	pod.Spec.Hostname = j.seen.Name + "-" + text
	tail := "-" + text + "-"
	pod.GenerateName = j.seen.Name[:min(len(j.seen.Name), maxHostName-suffixLength-len(tail))] + tail
	tell := func(containers []corev1.Container) {
		for i := range containers {
			if !slices.ContainsFunc(containers[i].Env, func(e corev1.EnvVar) bool { return e.Name == indexEnv }) {
				containers[i].Env = append(containers[i].Env, corev1.EnvVar{Name: indexEnv, ValueFrom: &corev1.EnvVarSource{
					FieldRef: &corev1.ObjectFieldSelector{FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)},
				}})
			}
		}
	}
	tell(pod.Spec.InitContainers)
	tell(pod.Spec.Containers)
	if !j.perIndex() {
		return
	}
	failures, ignored := 0, 0
	if last := j.successors[index]; last != nil {
		failures = failuresOf(last.pod, batchv1.JobIndexFailureCountAnnotation)
		ignored = failuresOf(last.pod, batchv1.JobIndexIgnoredFailureCountAnnotation)
		if counted, _, _ := j.matchFailure(last.pod); counted {
			failures++
		} else {
			ignored++
		}
	}
	pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(failures)
	if ignored > 0 {
		pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(ignored)
	}
}

// failuresOf reads a failure count from an annotation, 0 if there is none to read.
func failuresOf(pod *corev1.Pod, annotation string) int {
	n, err := strconv.ParseInt(pod.Annotations[annotation], 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int(n)
}

// remove stops a pod of a Job that ends. countPods counts it.
func (j *job) remove(p *jobPod) {
	j.stop(p)
	p.removed = true
}

// discard deletes pods that are not to be counted: the Job goes on without them.
func (j *job) discard(pods []*jobPod) {
	for _, p := range pods {
		j.stop(p)
		j.untrack(p)
		j.delete(p)
		p.gone, p.tracked = true, false
	}
}

func (j *job) stop(p *jobPod) {
	j.active--
	if placement.Ready(p.pod) {
		j.ready--
	}
	if p.pod.Spec.NodeName != "" {
		j.stopping++
	}
}

// untrack takes the finalizer off a pod.
func (j *job) untrack(p *jobPod) {
	if !p.tracked {
		return
	}
	want := p.pod.DeepCopy()
	untrack(want)
	change := placement.Updating(placement.Update, p.pod, want)
	if p.changed {
		change.ResourceVersion = ""
	}
	j.plan.Add(change)
	p.changed = true
}

func (j *job) delete(p *jobPod) {
	j.plan.Add(placement.Change{
		Verb: placement.Delete, Object: p.pod, UID: p.pod.UID, Events: []placement.Event{{
			Regarding: j.seen, Type: corev1.EventTypeNormal, Reason: "SuccessfulDelete", Message: "Deleted pod: " + p.pod.Name, Component: jobComponent,
		}},
	})
}

// Back-off after failures: doubled with each in a row.
const (
	firstBackoff = 10 * time.Second
	lastBackoff  = 10 * time.Minute
)

// backoff is when the next pod may be created after the failures since the last success. They are read
// from the pods themselves, so that a new leader knows them too; failures of pods that are gone are
// forgotten, so that a pod whose node is lost is replaced at once.
func (j *job) backoff() time.Time {
	var failures []time.Time
	var success time.Time
	for _, p := range j.pods {
		switch {
		case p.pod.Status.Phase == corev1.PodSucceeded:
			if at := finishedAt(p.pod); at.After(success) {
				success = at
			}
		case p.failed:
			failures = append(failures, finishedAt(p.pod))
		}
	}
	failures = slices.DeleteFunc(failures, func(at time.Time) bool { return !at.After(success) })
	if len(failures) == 0 {
		return time.Time{}
	}
	return j.retryAt(len(failures), slices.MaxFunc(failures, time.Time.Compare))
}

// retryAt is when to try again after that many failures, the last of them at a time. If that time is
// still to come, the clock has been set back; then the wait begins now.
func (j *job) retryAt(failures int, last time.Time) time.Time {
	wait := lastBackoff
	if failures <= 10 {
		wait = min(firstBackoff<<(failures-1), lastBackoff)
	}
	if last.After(j.now) {
		last = j.now
	}
	return last.Add(wait)
}

// finishedAt is when a pod has ended, as far as anybody knows: when its last container did, when it was
// seen unready, when its deletion was asked for, or when it was created.
func finishedAt(pod *corev1.Pod) time.Time {
	if at, ok := containersEnded(pod); ok {
		return at
	}
	if c := placement.PodCondition(pod, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if pod.DeletionTimestamp != nil {
		return pod.DeletionTimestamp.Add(-time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0)) * time.Second)
	}
	return pod.CreationTimestamp.Time
}

func containersEnded(pod *corev1.Pod) (time.Time, bool) {
	var last time.Time
	ended := func(s *corev1.ContainerStatus) bool {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			return false
		}
		if at := s.State.Terminated.FinishedAt.Time; at.After(last) {
			last = at
		}
		return true
	}
	for i := range pod.Status.ContainerStatuses {
		if !ended(&pod.Status.ContainerStatuses[i]) {
			return time.Time{}, false
		}
	}
	for i := range pod.Status.InitContainerStatuses {
		if s := &pod.Status.InitContainerStatuses[i]; isSidecar(pod, s.Name) && !ended(s) {
			return time.Time{}, false
		}
	}
	return last, !last.IsZero()
}

// findSuccessors finds, per index, the failed pod that waits for a successor to take over its failure
// count. It keeps its finalizer until then.
func (j *job) findSuccessors() {
	if !j.perIndex() {
		return
	}
	j.successors = map[int]*jobPod{}
	busy := map[int]bool{}
	for _, p := range j.pods {
		busy[p.index] = busy[p.index] || p.active()
	}
	attempts := func(p *jobPod) int {
		return failuresOf(p.pod, batchv1.JobIndexFailureCountAnnotation) + failuresOf(p.pod, batchv1.JobIndexIgnoredFailureCountAnnotation)
	}
	for _, p := range j.pods {
		if !p.tracked || !p.failed || p.index < 0 || busy[p.index] || j.done.has(p.index) || j.lost.has(p.index) {
			continue
		}
		if last := j.successors[p.index]; last == nil ||
			cmp.Compare(attempts(last), attempts(p)) <= 0 && !finishedAt(p.pod).Before(finishedAt(last.pod)) {
			j.successors[p.index] = p
		}
	}
}
