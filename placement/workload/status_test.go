package workload

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement/internal/world"
)

// TestEveryCountOfAReplicaSet follows the counts of a set whose pods become ready, available, differently labelled and terminating; a
// ReplicationController counts the same.
func TestEveryCountOfAReplicaSet(t *testing.T) {
	labels := map[string]string{"app": "web", "tier": "front"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "set", Generation: 1}, Spec: appsv1.ReplicaSetSpec{
		Replicas: ptr.To[int32](3), MinReadySeconds: 10, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: template,
	}}
	controller := &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old", UID: "rc", Generation: 1}, Spec: corev1.ReplicationControllerSpec{
		Replicas: ptr.To[int32](3), MinReadySeconds: 10, Selector: map[string]string{"app": "old"}, Template: template.DeepCopy(),
	}}
	controller.Spec.Template.Labels = map[string]string{"app": "old", "tier": "front"}
	w := world.New()
	w.Put(set)
	w.Put(controller)
	counts := func() (ofSet, ofController string) {
		t.Helper()
		for range 2 {
			rs, _ := w.View.ReplicaSets.Get("default", "web")
			rc, _ := w.View.Replication.Get("default", "old")
			if err := w.Apply(PlanReplicaSet(w.View, rs, w.Now)); err != nil {
				t.Fatal(err)
			}
			if err := w.Apply(PlanReplicationController(w.View, rc, w.Now)); err != nil {
				t.Fatal(err)
			}
		}
		rs, _ := w.View.ReplicaSets.Get("default", "web")
		rc, _ := w.View.Replication.Get("default", "old")
		a, b := rs.Status, rc.Status
		return fmt.Sprint(a.Replicas, a.FullyLabeledReplicas, a.ReadyReplicas, a.AvailableReplicas, ptr.Deref(a.TerminatingReplicas, -1), a.ObservedGeneration),
			fmt.Sprint(b.Replicas, b.FullyLabeledReplicas, b.ReadyReplicas, b.AvailableReplicas, b.ObservedGeneration)
	}
	check := func(what, wantSet, wantController string) {
		t.Helper()
		if ofSet, ofController := counts(); ofSet != wantSet || ofController != wantController {
			t.Errorf("%s: %q and %q, want %q and %q", what, ofSet, ofController, wantSet, wantController)
		}
	}
	check("made", "3 3 0 0 0 1", "3 3 0 0 1")
	for _, pod := range w.Pods("default") {
		w.Bind(pod, "n")
		pod, _ := w.View.Pod("default", pod.Name)
		w.Run(pod.Object, true)
	}
	check("ready", "3 3 3 0 0 1", "3 3 3 0 1")
	w.Now = w.Now.Add(11 * time.Second)
	check("available", "3 3 3 3 0 1", "3 3 3 3 1")
	seen := map[string]bool{}
	for _, pod := range w.Pods("default") {
		if app := pod.Labels["app"]; !seen[app] {
			seen[app] = true
			w.EditPod(pod, func(p *corev1.Pod) { p.Labels = map[string]string{"app": app} })
		}
	}
	check("one without the template's labels", "3 2 3 3 0 1", "3 2 3 3 1")
	smaller, fewer := set.DeepCopy(), controller.DeepCopy()
	smaller.Spec.Replicas, fewer.Spec.Replicas = ptr.To[int32](1), ptr.To[int32](1)
	if rs, ok := w.View.ReplicaSets.Get("default", "web"); ok {
		smaller.Status = rs.Status
	}
	if rc, ok := w.View.Replication.Get("default", "old"); ok {
		fewer.Status = rc.Status
	}
	w.Put(smaller)
	w.Put(fewer)
	check("scaled down", "1 1 1 1 2 2", "1 1 1 1 2")
	w.EndTerminating(nil)
	check("when they are gone", "1 1 1 1 0 2", "1 1 1 1 2")
}

// TestSetsSayWhatWasRefused: a ReplicaSet and a ReplicationController whose pods the API refuses have a condition with its words.
func TestSetsSayWhatWasRefused(t *testing.T) {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	w := world.New()
	w.Put(&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "set"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template,
	}})
	w.Put(&corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old", UID: "rc"}, Spec: corev1.ReplicationControllerSpec{
		Replicas: ptr.To[int32](1), Selector: template.Labels, Template: &template,
	}})
	const message = "exceeded quota"
	conditions := func() (ofSet []appsv1.ReplicaSetCondition, ofController []corev1.ReplicationControllerCondition) {
		t.Helper()
		rs, _ := w.View.ReplicaSets.Get("default", "web")
		rc, _ := w.View.Replication.Get("default", "old")
		if err := w.Apply(PlanReplicaSet(w.View, rs, w.Now)); err != nil {
			t.Fatal(err)
		}
		if err := w.Apply(PlanReplicationController(w.View, rc, w.Now)); err != nil {
			t.Fatal(err)
		}
		rs, _ = w.View.ReplicaSets.Get("default", "web")
		rc, _ = w.View.Replication.Get("default", "old")
		return rs.Status.Conditions, rc.Status.Conditions
	}
	w.View.Refuse("set", 1, message, w.Now)
	w.View.Refuse("rc", 1, message, w.Now)
	ofSet, ofController := conditions()
	if len(ofSet) != 1 || ofSet[0].Type != appsv1.ReplicaSetReplicaFailure || ofSet[0].Reason != "FailedCreate" || ofSet[0].Message != message || ofSet[0].Status != corev1.ConditionTrue {
		t.Errorf("the set's conditions: %+v", ofSet)
	}
	if len(ofController) != 1 || ofController[0].Type != corev1.ReplicationControllerReplicaFailure || ofController[0].Reason != "FailedCreate" || ofController[0].Message != message {
		t.Errorf("the controller's conditions: %+v", ofController)
	}
	w.View.Accept("set", 1)
	w.View.Accept("rc", 1)
	w.Now = w.Now.Add(time.Minute)
	conditions()
	if ofSet, ofController = conditions(); len(ofSet)+len(ofController) != 0 {
		t.Errorf("afterwards: %+v %+v", ofSet, ofController)
	}
}
