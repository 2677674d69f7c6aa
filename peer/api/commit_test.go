package api_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/peer/api"
)

const leader = "system:shoal:leader"

func committed(t *testing.T, changes ...api.Change) {
	t.Helper()
	revision, errs := shared.Server.Commit(t.Context(), leader, changes)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if revision == 0 {
		t.Error("committed at no revision")
	}
}

func replicaSet(namespace, name string) *appsv1.ReplicaSet {
	labels := map[string]string{"app": name}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: appsv1.ReplicaSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: boundPod(namespace, name, "").Spec},
		},
	}
}

// TestCommitOneDecision commits a ReplicaSet and its already bound pods at once, as a leader does.
func TestCommitOneDecision(t *testing.T) {
	namespace(t, "decided")
	changes := []api.Change{{Verb: api.Create, Object: replicaSet("decided", "rs")}}
	for i := range 20 {
		changes = append(changes, api.Change{Verb: api.Create, Object: boundPod("decided", fmt.Sprint("p", i), "somewhere")})
	}
	begin := time.Now()
	committed(t, changes...)
	t.Logf("%d objects in %v", len(changes), time.Since(begin))

	pod := must(admin.CoreV1().Pods("decided").Get(t.Context(), "p7", metav1.GetOptions{}))(t)
	if pod.Spec.NodeName != "somewhere" || pod.Spec.ServiceAccountName != "default" || pod.Status.Phase != corev1.PodPending {
		t.Errorf("defaults and admission did not run: %+v", pod.Spec)
	}
	for _, toleration := range pod.Spec.Tolerations {
		if *toleration.TolerationSeconds != api.DefaultTolerationSeconds {
			t.Errorf("toleration %+v", toleration)
		}
	}
	if len(pod.Spec.Tolerations) != 2 || len(pod.Spec.Volumes) != 1 {
		t.Errorf("%d tolerations, %d volumes", len(pod.Spec.Tolerations), len(pod.Spec.Volumes))
	}

	pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, "10.32.0.7"
	unscheduled := boundPod("decided", "late", "")
	committed(t, api.Change{Verb: api.UpdateStatus, Object: pod}, api.Change{Verb: api.Create, Object: unscheduled})
	late := must(admin.CoreV1().Pods("decided").Get(t.Context(), "late", metav1.GetOptions{}))(t)
	late.Spec.NodeName = "there"
	pod.ResourceVersion = "" // its status changed meanwhile
	zero := int64(0)
	committed(t, api.Change{Verb: api.Bind, Object: late}, api.Change{Verb: api.Delete, Object: pod, GracePeriodSeconds: &zero})
	late = must(admin.CoreV1().Pods("decided").Get(t.Context(), "late", metav1.GetOptions{}))(t)
	if late.Spec.NodeName != "there" {
		t.Errorf("bound to %q", late.Spec.NodeName)
	}
}

// TestCommitDisruption deletes a pod gracefully and says why in the same transaction, also on an old picture of it.
func TestCommitDisruption(t *testing.T) {
	namespace(t, "disrupted")
	committed(t, api.Change{Verb: api.Create, Object: boundPod("disrupted", "p", "somewhere")})
	seen := must(admin.CoreV1().Pods("disrupted").Get(t.Context(), "p", metav1.GetOptions{}))(t)
	running := seen.DeepCopy()
	running.Status.Phase = corev1.PodRunning
	must(admin.CoreV1().Pods("disrupted").UpdateStatus(t.Context(), running, metav1.UpdateOptions{}))(t)

	seen.ResourceVersion = ""
	why := &corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler, Message: "for a test"}
	other := seen.DeepCopy()
	other.UID = "another"
	_, errs := shared.Server.Commit(t.Context(), leader, []api.Change{{Verb: api.Delete, Object: other, Disruption: why}})
	if !apierrors.IsConflict(errs[0]) {
		t.Errorf("another pod of that name: %v, want a conflict", errs[0])
	}
	committed(t, api.Change{Verb: api.Delete, Object: seen, Disruption: why})
	pod := must(admin.CoreV1().Pods("disrupted").Get(t.Context(), "p", metav1.GetOptions{}))(t)
	if pod.DeletionTimestamp == nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("deletion %v, phase %s", pod.DeletionTimestamp, pod.Status.Phase)
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.DisruptionTarget && condition.Reason == why.Reason && condition.Message == why.Message && !condition.LastTransitionTime.IsZero() {
			return
		}
	}
	t.Errorf("conditions %+v", pod.Status.Conditions)
}

// TestCommitIsAtomic checks that neither a refused nor a conflicting change leaves anything of its decision behind.
func TestCommitIsAtomic(t *testing.T) {
	namespace(t, "atomic")
	good := func(name string) api.Change { return api.Change{Verb: api.Create, Object: configMap("atomic", name)} }
	absent := func(name string) {
		t.Helper()
		if _, err := admin.CoreV1().ConfigMaps("atomic").Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s: %v, want NotFound", name, err)
		}
	}

	_, errs := shared.Server.Commit(t.Context(), leader, []api.Change{good("one"), {Verb: api.Create, Object: configMap("atomic", "Not A Name")}})
	if !errors.Is(errs[0], api.ErrNotCommitted) || !apierrors.IsInvalid(errs[1]) {
		t.Errorf("refused: %v", errs)
	}
	absent("one")

	committed(t, good("two"))
	stale := must(admin.CoreV1().ConfigMaps("atomic").Get(t.Context(), "two", metav1.GetOptions{}))(t)
	changed := stale.DeepCopy()
	changed.Data = map[string]string{"a": "b"}
	must(admin.CoreV1().ConfigMaps("atomic").Update(t.Context(), changed, metav1.UpdateOptions{}))(t)
	_, errs = shared.Server.Commit(t.Context(), leader, []api.Change{good("three"), {Verb: api.Update, Object: stale}})
	if !errors.Is(errs[0], api.ErrNotCommitted) || !apierrors.IsConflict(errs[1]) {
		t.Errorf("stale: %v", errs)
	}
	absent("three")
	_, errs = shared.Server.Commit(t.Context(), leader, []api.Change{good("two"), good("four")})
	if !apierrors.IsAlreadyExists(errs[0]) || !errors.Is(errs[1], api.ErrNotCommitted) {
		t.Errorf("exists: %v", errs)
	}
	absent("four")
}
