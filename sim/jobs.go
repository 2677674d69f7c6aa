package sim

import (
	"fmt"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"shoal/sim/model"
)

const formJob = "job NAME completions NUMBER parallelism NUMBER runs DURATION [fails NUMBER] cpu QUANTITY memory QUANTITY"

// What a Job's manifest does not say, its annotations may: how long a container runs until it ends by itself, and how many of the first runs,
// of all pods or of each completion index, end with an error.
const (
	annotationRuns  = "sim.shoal.io/runs"
	annotationFails = "sim.shoal.io/fails"
	defaultRuns     = 10 * time.Second
	// mostJobPods is how many completions a Job may have, and how many of its pods may run at once.
	mostJobPods         = 10_000
	defaultBackoffLimit = 6
)

// takeJob reads a Job of equal pods, which are made anew when they fail.
func (p *parser) takeJob(r *reader) {
	w := model.Workload{Name: p.workloadName(r), Job: &model.Job{}}
	r.keyword("completions")
	w.Job.Spec.Completions = ptr.To(int32(r.number(1, mostJobPods)))
	r.keyword("parallelism")
	w.Replicas = r.number(1, mostJobPods)
	w.Job.Spec.Parallelism = ptr.To(int32(w.Replicas))
	r.keyword("runs")
	w.Job.Runs = r.duration(time.Millisecond)
	if r.optional("fails") {
		w.Job.Fails = r.number(0, mostJobPods)
	}
	defaultJob(&w.Job.Spec)
	p.addWorkload(r, w)
}

// defaultJob gives a Job the API's defaults.
func defaultJob(spec *batchv1.JobSpec) {
	if spec.Parallelism == nil {
		spec.Parallelism = ptr.To[int32](1)
	}
	if spec.Completions == nil && *spec.Parallelism == 1 {
		spec.Completions = ptr.To[int32](1)
	}
	if spec.CompletionMode == nil {
		spec.CompletionMode = ptr.To(batchv1.NonIndexedCompletion)
	}
	if spec.BackoffLimit == nil {
		spec.BackoffLimit = ptr.To[int32](defaultBackoffLimit)
	}
	if spec.PodReplacementPolicy == nil {
		spec.PodReplacementPolicy = ptr.To(batchv1.TerminatingOrFailed)
	}
	spec.Suspend = ptr.To(false)
}

// jobOf is a Job's workload. A Job that has ended stays: its time to live is left out.
func jobOf(j *batchv1.Job) (model.Workload, error) {
	policy := j.Spec.Template.Spec.RestartPolicy
	w, err := workloadOf(&j.ObjectMeta, nil, &j.Spec.Template, false)
	if err != nil {
		return w, err
	}
	wrong := func(field, got, expected string) error {
		return fmt.Errorf("%s: %s is %s; expected: %s", w.Name, field, got, expected)
	}
	spec := *j.Spec.DeepCopy()
	switch {
	case policy != corev1.RestartPolicyNever && policy != corev1.RestartPolicyOnFailure:
		return w, wrong("spec.template.spec.restartPolicy", strconv.Quote(string(policy)), "Never or OnFailure")
	case spec.Suspend != nil && *spec.Suspend:
		return w, wrong("spec.suspend", "true", "false, as nobody would resume it")
	case spec.ManagedBy != nil && *spec.ManagedBy != batchv1.JobControllerName:
		return w, wrong("spec.managedBy", strconv.Quote(*spec.ManagedBy), batchv1.JobControllerName+" or nothing: other controllers are not simulated")
	case spec.PodFailurePolicy != nil:
		return w, wrong("spec.podFailurePolicy", "set", "nothing: which exit codes there are is not simulated")
	case spec.ManualSelector != nil && *spec.ManualSelector:
		return w, wrong("spec.manualSelector", "true", "false: a Job has a namespace of its own here")
	case spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion && spec.Completions == nil:
		return w, wrong("spec.completions", "missing", "a number, as the Job is Indexed")
	case spec.CompletionMode != nil && *spec.CompletionMode != batchv1.IndexedCompletion && *spec.CompletionMode != batchv1.NonIndexedCompletion:
		return w, wrong("spec.completionMode", strconv.Quote(string(*spec.CompletionMode)), "Indexed or NonIndexed")
	case spec.BackoffLimit == nil && spec.BackoffLimitPerIndex != nil:
		spec.BackoffLimit = ptr.To[int32](1<<31 - 1)
	}
	for field, n := range map[string]*int32{"parallelism": spec.Parallelism, "completions": spec.Completions} {
		if n != nil && (*n < 1 || *n > mostJobPods) {
			return w, wrong("spec."+field, strconv.Itoa(int(*n)), fmt.Sprintf("1 to %d", mostJobPods))
		}
	}
	for field, n := range map[string]*int32{"backoffLimit": spec.BackoffLimit, "backoffLimitPerIndex": spec.BackoffLimitPerIndex} {
		if n != nil && *n < 0 {
			return w, wrong("spec."+field, strconv.Itoa(int(*n)), "0 or more")
		}
	}
	defaultJob(&spec)
	w.Job = &model.Job{Runs: defaultRuns}
	if text, says := j.Annotations[annotationRuns]; says {
		if w.Job.Runs, err = time.ParseDuration(text); err != nil || w.Job.Runs <= 0 {
			return w, wrong("the annotation "+annotationRuns, strconv.Quote(text), "a duration, as 500ms, 30s or 1h30m")
		}
	}
	if text, says := j.Annotations[annotationFails]; says {
		if w.Job.Fails, err = strconv.Atoi(text); err != nil || w.Job.Fails < 0 {
			return w, wrong("the annotation "+annotationFails, strconv.Quote(text), "a number of runs, 0 or more")
		}
	}
	w.Template.Spec.RestartPolicy = policy
	w.Replicas = int(*spec.Parallelism)
	if spec.Completions != nil {
		w.Replicas = int(min(*spec.Parallelism, *spec.Completions))
	}
	spec.Template, spec.Selector, spec.TTLSecondsAfterFinished = corev1.PodTemplateSpec{}, nil, nil
	w.Job.Spec = spec
	return w, nil
}

// jobText is a Job's line.
func jobText(w model.Workload) string {
	fails := ""
	if w.Job.Fails > 0 {
		fails = fmt.Sprintf(" fails %d", w.Job.Fails)
	}
	return fmt.Sprintf("job %s completions %d parallelism %d runs %s%s cpu %s memory %s\n", w.Name, *w.Job.Spec.Completions, *w.Job.Spec.Parallelism,
		w.Job.Runs, fails, quantity(w.Requests, corev1.ResourceCPU), quantity(w.Requests, corev1.ResourceMemory))
}
