package model

import (
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// Job is what a workload needs to be a Job: how its pods are to end, which workload.PlanJob decides about, and how long they run and how they
// end, which is modelled.
type Job struct {
	// Spec is a Job's, with the API's defaults; its template is Workload.Template, its selector is made when it is written.
	Spec batchv1.JobSpec
	// Runs is how long a container runs until it ends by itself.
	Runs time.Duration
	// Fails is how many of the first runs end with an error: of all its pods, or, of an Indexed Job, of each completion index.
	Fails int
}

const jobPrefix = "/registry/jobs/"

// exitFailed is the exit code of a run that fails.
const exitFailed = 1

// Back-off of a container that is started again where it was, which its node decides (kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle,
// "Container restarts").
const (
	firstRestart = 10 * time.Second
	lastRestart  = 5 * time.Minute
)

// jobObject is a Job as the API would have stored it: with the selector and the labels that are made from its UID.
func jobObject(w Workload, meta metav1.ObjectMeta) *batchv1.Job {
	meta.UID = placement.NewNames("job", w.Name).UID()
	labels := map[string]string{batchv1.ControllerUidLabel: string(meta.UID), batchv1.JobNameLabel: w.Name}
	job := &batchv1.Job{ObjectMeta: meta, Spec: *w.Job.Spec.DeepCopy()}
	job.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{batchv1.ControllerUidLabel: string(meta.UID)}}
	job.Spec.Template = template(w, labels)
	return job
}

// jobOf is the Job that a pod is of, nil if it is of none.
func (m *Model) jobOf(pod *corev1.Pod) *Job {
	if w := m.jobs[pod.Namespace]; w != nil {
		return w.Job
	}
	return nil
}

// fails tells whether the run of a pod that ends now ends with an error.
func (m *Model) fails(pod *corev1.Pod) bool {
	who := pod.Namespace + " " + pod.Annotations[batchv1.JobCompletionIndexAnnotation]
	m.ran[who]++
	return m.ran[who] <= m.jobOf(pod).Fails
}

// run lets a Job's container end by itself; the peer's process may be gone by then.
func (n *node) run(c *container) {
	job := n.model.jobOf(c.pod)
	if job == nil {
		return
	}
	begun := n.model.now
	c.begun = begun
	n.later(job.Runs, "exit", func() {
		if n.up && n.pods[c.pod.UID] == c && c.running && c.begun == begun {
			n.exits(c)
		}
	})
}

// exits is the end of a Job's container. One that failed is started again by its node after a while, if its pod says so.
func (n *node) exits(c *container) {
	m := n.model
	c.running = false
	m.changedPod(c.pod.Namespace, n)
	failed := m.fails(c.pod)
	if failed && c.pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure {
		c.restarts++
		m.note("%s: %s/%s fails, for the %d. time", n.name, c.pod.Namespace, c.pod.Name, c.restarts)
		wait := lastRestart
		if c.restarts <= 5 {
			wait = min(firstRestart<<(c.restarts-1), lastRestart)
		}
		n.do(wait, "start", func() { n.started(c) })
	} else {
		n.exited(c, failed)
	}
	if !n.dead {
		n.report(c.pod)
	}
}

// exited notes that a container has ended for good.
func (n *node) exited(c *container, failed bool) {
	c.exited, c.failed, c.ended = true, failed, n.wall()
	n.model.note("%s: %s/%s has ended, with an error: %t", n.name, c.pod.Namespace, c.pod.Name, failed)
}

// interrupted tells whether a pod ran here that may not be started again where it was, and runs no more: its machine has lost its power.
func (n *node) interrupted(pod *corev1.Pod) bool {
	return pod.Spec.RestartPolicy == corev1.RestartPolicyNever && pod.Status.Phase == corev1.PodRunning
}

// describe adds to a pod's status what its node says of a Job's container.
func (c *container) describe(status *corev1.PodStatus) {
	said := corev1.ContainerStatus{Name: c.pod.Spec.Containers[0].Name, RestartCount: int32(c.restarts)}
	switch {
	case c.exited:
		end := &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(c.ended), Reason: "Completed"}
		if status.Phase = corev1.PodSucceeded; c.failed {
			status.Phase, end.ExitCode, end.Reason = corev1.PodFailed, exitFailed, "Error"
		}
		said.State.Terminated = end
	case c.running:
		said.State.Running = &corev1.ContainerStateRunning{}
	default:
		said.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
	}
	status.ContainerStatuses = []corev1.ContainerStatus{said}
}

// ending are the changes by which a node ends a pod that somebody has deleted: one of a Job is said to have failed first, unless it had ended
// before, for its finalizer keeps it until the Job has counted that.
func (n *node) ending(stored *corev1.Pod, c *container) []placement.Change {
	gone := placement.Change{Verb: placement.Delete, Object: stored, UID: stored.UID, GracePeriodSeconds: ptr.To[int64](0)}
	if len(stored.Finalizers) == 0 {
		return []placement.Change{gone}
	}
	if c == nil {
		c = &container{pod: stored, exited: true, failed: true, ended: n.wall()}
	}
	want := stored.DeepCopy()
	want.Status = statusOf(stored, c, n.wall())
	c.describe(&want.Status)
	return []placement.Change{{Verb: placement.UpdateStatus, Object: want, UID: stored.UID}, gone}
}

// storedJob is a workload's Job as the store has it, nil if it is not there.
func (m *Model) storedJob(w Workload) *batchv1.Job {
	job, _ := m.shardOf(w.Name).objects[jobPrefix+w.Name+"/"+w.Name].(*batchv1.Job)
	return job
}

// jobEnd is the condition with which a Job has ended, nil while it has not.
func jobEnd(job *batchv1.Job) *batchv1.JobCondition {
	if job == nil {
		return nil
	}
	for i, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return &job.Status.Conditions[i]
		}
	}
	return nil
}

// wrongWithJob says what is not as desired with a Job, or nothing: it has come to a good end.
func (m *Model) wrongWithJob(w Workload) string {
	job := m.storedJob(w)
	switch end := jobEnd(job); {
	case job == nil:
		return fmt.Sprintf("the Job %s is not there", w.Name)
	case end == nil:
		return fmt.Sprintf("the Job %s has %d of %d completions, %d pods failed", w.Name, job.Status.Succeeded, completions(w), job.Status.Failed)
	case end.Type == batchv1.JobFailed:
		return fmt.Sprintf("the Job %s has failed: %s: %s", w.Name, end.Reason, end.Message)
	}
	return ""
}

// completions are how many pods of a Job have to end well: one is enough of a Job that does not say.
func completions(w Workload) int32 { return ptr.Deref(w.Job.Spec.Completions, 1) }

// observeJob tells that a Job has ended.
func (m *Model) observeJob(before, now placement.Object) {
	was, _ := before.(*batchv1.Job)
	job, _ := now.(*batchv1.Job)
	if end := jobEnd(job); end != nil && jobEnd(was) == nil {
		m.emit(Event{Kind: EventJobEnded, Text: fmt.Sprintf("the Job %s has ended: %s, %d pods succeeded, %d failed",
			job.Name, end.Type, job.Status.Succeeded, job.Status.Failed)})
	}
}
