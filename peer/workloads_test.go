package peer

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func appTemplate() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}},
	}
}

// end reports a pod as its node does when its containers have ended.
func (f *field) end(t *testing.T, pod *corev1.Pod, code int32) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "c", ImageID: "c", State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()},
	}}}
	if _, err := f.client.CoreV1().Pods(pod.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// ready reports a pod as its node does when it runs.
func (f *field) ready(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
	if _, err := f.client.CoreV1().Pods(pod.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestAJobPassesTheAPI runs an indexed Job to its end through admission, validation and finalizers.
func TestAJobPassesTheAPI(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4"})
	namespace := f.namespace(t)
	jobs := f.client.BatchV1().Jobs(namespace)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "work"}, Spec: batchv1.JobSpec{
		Completions: ptr.To[int32](3), Parallelism: ptr.To[int32](2), CompletionMode: ptr.To(batchv1.IndexedCompletion),
		BackoffLimitPerIndex: ptr.To[int32](1), Template: appTemplate(), TTLSecondsAfterFinished: ptr.To[int32](1),
	}}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, err := jobs.Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	doomed := true // the first pod to end fails
	await(t, func() string {
		got, err := jobs.Get(t.Context(), "work", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, c := range got.Status.Conditions {
			if c.Type == batchv1.JobComplete && got.Status.CompletedIndexes == "0-2" && got.Status.Failed == 1 {
				return ""
			}
		}
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending {
				if doomed {
					f.end(t, &pod, 1)
					doomed = false
				} else {
					f.end(t, &pod, 0)
				}
			}
		}
		return fmt.Sprintf("not complete: %+v", got.Status)
	})
	for _, pod := range f.pods(t, namespace) {
		if len(pod.Finalizers) > 0 {
			t.Errorf("pod %s keeps %v", pod.Name, pod.Finalizers)
		}
	}
	await(t, func() string { // its time to live
		got, err := jobs.Get(t.Context(), "work", metav1.GetOptions{})
		if err == nil && got.DeletionTimestamp == nil {
			return "the Job is still there"
		}
		return ""
	})
}

// TestASuspendedJobGivesItsPodsUp deletes pods with finalizers, on nodes and without, in one transaction each.
func TestASuspendedJobGivesItsPodsUp(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "1"})
	namespace := f.namespace(t)
	jobs := f.client.BatchV1().Jobs(namespace)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "work"}, Spec: batchv1.JobSpec{Parallelism: ptr.To[int32](3), Template: appTemplate()}}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	job.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("600m")}
	created, err := jobs.Create(t.Context(), job, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		if pods := f.pods(t, namespace); len(pods) != 3 {
			return fmt.Sprintf("%d pods", len(pods))
		}
		return ""
	})
	patch := []byte(`{"spec":{"suspend":true}}`)
	if _, err := jobs.Patch(t.Context(), created.Name, "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName == "" || pod.DeletionTimestamp == nil || len(pod.Finalizers) > 0 {
				return fmt.Sprintf("pod %s on %q is left, finalizers %v", pod.Name, pod.Spec.NodeName, pod.Finalizers)
			}
		}
		got, err := jobs.Get(t.Context(), "work", metav1.GetOptions{})
		if err != nil || got.Status.Active != 0 || len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Type != batchv1.JobSuspended {
			return fmt.Sprintf("%v, status %+v", err, got.Status)
		}
		return ""
	})
}

// TestAStatefulSetPassesTheAPI starts pods with claims in order and rolls them over.
func TestAStatefulSetPassesTheAPI(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4"})
	namespace := f.namespace(t)
	sets := f.client.AppsV1().StatefulSets(namespace)
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: ptr.To[int32](2), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}, Template: appTemplate(), ServiceName: "db",
	}}
	if _, err := sets.Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	grow := func() {
		for _, pod := range f.pods(t, namespace) {
			if pod.DeletionTimestamp != nil {
				_ = f.client.CoreV1().Pods(namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
			} else if pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending {
				f.ready(t, &pod)
			}
		}
	}
	complete := func(want func(appsv1.StatefulSetStatus) bool) {
		t.Helper()
		await(t, func() string {
			grow()
			got, err := sets.Get(t.Context(), "db", metav1.GetOptions{})
			if err != nil || !want(got.Status) || got.Status.ReadyReplicas != 2 || got.Status.CurrentRevision != got.Status.UpdateRevision {
				return fmt.Sprintf("%v, status %+v", err, got.Status)
			}
			return ""
		})
	}
	var first string
	complete(func(s appsv1.StatefulSetStatus) bool { first = s.UpdateRevision; return s.AvailableReplicas == 2 })
	patch := []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"d"}]}}}}`)
	if _, err := sets.Patch(t.Context(), "db", "application/strategic-merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	complete(func(s appsv1.StatefulSetStatus) bool { return s.UpdateRevision != first && s.UpdatedReplicas == 2 })
	list, err := f.client.AppsV1().ControllerRevisions(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%v, %d revisions", err, len(list.Items))
	}
}

// TestADaemonSetAndItsBudgetPassTheAPI: one pod per node, counted by a budget.
func TestADaemonSetAndItsBudgetPassTheAPI(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4", "node-b": "4"})
	namespace := f.namespace(t)
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: appTemplate()}}
	if _, err := f.client.AppsV1().DaemonSets(namespace).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "guard"}, Spec: policyv1.PodDisruptionBudgetSpec{
		Selector: selector, MinAvailable: ptr.To(intstr.FromInt32(1)),
	}}
	if _, err := f.client.PolicyV1().PodDisruptionBudgets(namespace).Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		for _, pod := range f.pods(t, namespace) {
			if pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending {
				f.ready(t, &pod)
			}
		}
		s, err := f.client.AppsV1().DaemonSets(namespace).Get(t.Context(), "agent", metav1.GetOptions{})
		if err != nil || s.Status.NumberAvailable != 2 || s.Status.UpdatedNumberScheduled != 2 {
			return fmt.Sprintf("%v, %+v", err, s.Status)
		}
		b, err := f.client.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), "guard", metav1.GetOptions{})
		if err != nil || b.Status.DisruptionsAllowed != 1 {
			return fmt.Sprintf("%v, %+v", err, b.Status)
		}
		return ""
	})
	victim := f.pods(t, namespace)[0].Name
	evict := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: victim, Namespace: namespace}}
	if err := f.client.PolicyV1().Evictions(namespace).Evict(t.Context(), evict); err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		b, err := f.client.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), "guard", metav1.GetOptions{})
		if err != nil || b.Status.CurrentHealthy != 1 || b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != 0 {
			return fmt.Sprintf("after an eviction: %v, %+v", err, b.Status)
		}
		return ""
	})
}

// TestACronJobPassesTheAPI starts the Job of a minute that has just passed.
func TestACronJobPassesTheAPI(t *testing.T) {
	f := newField(t, map[string]string{"node-a": "4"})
	namespace := f.namespace(t)
	cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "tick"}, Spec: batchv1.CronJobSpec{
		Schedule: "@every 1s", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: appTemplate()}},
	}}
	cron.Spec.JobTemplate.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, err := f.client.BatchV1().CronJobs(namespace).Create(t.Context(), cron, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		c, err := f.client.BatchV1().CronJobs(namespace).Get(t.Context(), "tick", metav1.GetOptions{})
		if err != nil || len(c.Status.Active) == 0 || c.Status.LastScheduleTime == nil {
			return fmt.Sprintf("%v, %+v", err, c.Status)
		}
		if len(f.pods(t, namespace)) == 0 {
			return "the Job has no pod"
		}
		return ""
	})
}
