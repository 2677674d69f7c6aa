package workload

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// judge decides whether the Job has to end, by what came first: an earlier verdict, a pod that the failure
// policy takes for fatal, too many failures, too much time, too many lost indexes, enough successes.
func (j *job) judge() {
	for _, kind := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget} {
		if c := conditionOfJob(j.seen, kind); c != nil && c.Status == corev1.ConditionTrue {
			j.verdict = c
			return
		}
	}
	if message := j.fatalPod(); message != "" {
		j.fail(batchv1.JobReasonPodFailurePolicy, message)
		return
	}
	limit := ptr.Deref(j.seen.Spec.BackoffLimit, 6)
	switch {
	case j.failed > limit || j.restartedTooOften(limit):
		j.fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case j.pastDeadline():
		j.fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	case j.indexed():
		j.judgeIndexes()
	}
}

func (j *job) judgeIndexes() {
	if j.perIndex() {
		lost := j.lost.total()
		if most := j.seen.Spec.MaxFailedIndexes; most != nil && lost > int(*most) {
			j.fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		}
		if lost > 0 && lost+j.done.total() >= j.limit {
			j.fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if j.seen.Spec.SuccessPolicy == nil || len(j.done) == 0 {
		return
	}
	for i, rule := range j.seen.Spec.SuccessPolicy.Rules {
		enough := 0
		achieved := j.done.total()
		if rule.SucceededIndexes != nil {
			named := parseIndexes(*rule.SucceededIndexes, j.limit)
			if enough, achieved = named.total(), j.done.common(named); enough == 0 {
				continue // no index of this Job is meant
			}
		}
		if rule.SucceededCount != nil {
			enough = int(*rule.SucceededCount)
		}
		if enough > 0 && achieved >= enough {
			j.verdict = j.condition(batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", i))
			return
		}
	}
}

func (j *job) fail(reason, message string) {
	j.verdict = j.condition(batchv1.JobFailureTarget, reason, message)
}

// restartedTooOften counts the restarts within pods, which are the failures of those with restart policy OnFailure.
func (j *job) restartedTooOften(limit int32) bool {
	if j.seen.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, p := range j.pods {
		if p.pod.Status.Phase != corev1.PodRunning && p.pod.Status.Phase != corev1.PodPending {
			continue
		}
		for _, s := range slices.Concat(p.pod.Status.InitContainerStatuses, p.pod.Status.ContainerStatuses) {
			restarts += s.RestartCount
		}
	}
	return restarts >= max(limit, 1)
}

// pastDeadline tells whether the Job's time is over, or asks for a recheck when it will be.
func (j *job) pastDeadline() bool {
	start := j.want.Status.StartTime
	if j.seen.Spec.ActiveDeadlineSeconds == nil || start == nil || j.suspended() {
		return false
	}
	at := start.Add(time.Duration(min(*j.seen.Spec.ActiveDeadlineSeconds, 1<<31)) * time.Second)
	if j.now.Before(at) {
		j.plan.RecheckAt(at)
		return false
	}
	return true
}

// fatalPod finds a failed pod that the failure policy ends the Job for, and says why; "" if there is none.
func (j *job) fatalPod() string {
	if j.seen.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, p := range j.pods {
		if p.failed {
			if _, _, message := j.matchFailure(p.pod); message != "" {
				return message
			}
		}
	}
	return ""
}

// matchFailure finds the first rule of the failure policy that a pod matches: whether the failure counts,
// whether it loses the index, and for a fatal one the reason.
func (j *job) matchFailure(pod *corev1.Pod) (counts, losesIndex bool, fatal string) {
	if j.seen.Spec.PodFailurePolicy == nil {
		return true, false, ""
	}
	for i, rule := range j.seen.Spec.PodFailurePolicy.Rules {
		why := ""
		switch {
		case rule.OnExitCodes != nil:
			if s := matchingExit(pod, rule.OnExitCodes); s != nil {
				why = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d",
					s.Name, pod.Namespace, pod.Name, s.State.Terminated.ExitCode, rule.Action, i)
			}
		case rule.OnPodConditions != nil:
			if c := matchingCondition(pod, rule.OnPodConditions); c != nil {
				why = fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", pod.Namespace, pod.Name, c.Type, rule.Action, i)
			}
		}
		if why == "" {
			continue
		}
		switch rule.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return false, false, ""
		case batchv1.PodFailurePolicyActionFailIndex:
			return true, true, ""
		case batchv1.PodFailurePolicyActionCount:
			return true, false, ""
		case batchv1.PodFailurePolicyActionFailJob:
			return true, false, why
		}
	}
	return true, false, ""
}

// losesIndex tells whether a pod's end is the last that its index may have.
func (j *job) losesIndex(p *jobPod) bool {
	if !p.failed {
		return false
	}
	counts, loses, _ := j.matchFailure(p.pod)
	return loses || counts && failuresOf(p.pod, batchv1.JobIndexFailureCountAnnotation) >= int(*j.seen.Spec.BackoffLimitPerIndex)
}

// matchingExit finds a container that ended with a code that the rule is about.
func matchingExit(pod *corev1.Pod, rule *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, s := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if s.State.Terminated == nil || s.State.Terminated.ExitCode == 0 || rule.ContainerName != nil && *rule.ContainerName != s.Name {
			continue
		}
		listed := slices.Contains(rule.Values, s.State.Terminated.ExitCode)
		if rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && listed || rule.Operator == batchv1.PodFailurePolicyOnExitCodesOpNotIn && !listed {
			return &s
		}
	}
	return nil
}

func matchingCondition(pod *corev1.Pod, patterns []batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if slices.ContainsFunc(patterns, func(p batchv1.PodFailurePolicyOnPodConditionsPattern) bool {
			return p.Type == c.Type && p.Status == c.Status
		}) {
			return c
		}
	}
	return nil
}

// conclude writes the verdict down and, once nothing runs any more and all is counted, the end.
func (j *job) conclude() {
	j.setCondition(j.verdict.Type, corev1.ConditionTrue, j.verdict.Reason, j.verdict.Message)
	if j.more || j.active > 0 || j.stopping > 0 {
		return
	}
	if j.want.Status.StartTime == nil {
		j.want.Status.StartTime = j.time() // suspended from the beginning, with nothing to do; the API wants a time
	}
	if j.verdict.Type == batchv1.JobFailureTarget {
		j.setCondition(batchv1.JobFailed, corev1.ConditionTrue, j.verdict.Reason, j.verdict.Message)
		j.tell(corev1.EventTypeWarning, j.verdict.Reason, j.verdict.Message)
		return
	}
	j.setCondition(batchv1.JobComplete, corev1.ConditionTrue, j.verdict.Reason, j.verdict.Message)
	j.want.Status.CompletionTime = j.time()
	if completions := j.seen.Spec.Completions; completions != nil && j.want.Status.Succeeded > *completions {
		j.tell(corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	j.tell(corev1.EventTypeNormal, "Completed", "Job completed")
}

func (j *job) condition(kind batchv1.JobConditionType, reason, message string) *batchv1.JobCondition {
	return &batchv1.JobCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastProbeTime: *j.time(), LastTransitionTime: *j.time(),
	}
}

// setCondition makes a condition be as said and reports whether it was not.
func (j *job) setCondition(kind batchv1.JobConditionType, is corev1.ConditionStatus, reason, message string) bool {
	want := *j.condition(kind, reason, message)
	want.Status = is
	have := conditionOfJob(j.want, kind)
	switch {
	case have == nil:
		j.want.Status.Conditions = append(j.want.Status.Conditions, want)
	case have.Status == is && have.Reason == reason && have.Message == message:
		return false
	default:
		*have = want
	}
	return true
}

// conditionOfJob finds a condition, nil without one.
func conditionOfJob(o *batchv1.Job, kind batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range o.Status.Conditions {
		if o.Status.Conditions[i].Type == kind {
			return &o.Status.Conditions[i]
		}
	}
	return nil
}

// finishedCondition is the condition that says that a Job has ended, nil while it has not.
func finishedCondition(o *batchv1.Job) *batchv1.JobCondition {
	for i := range o.Status.Conditions {
		c := &o.Status.Conditions[i]
		if c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
			return c
		}
	}
	return nil
}
