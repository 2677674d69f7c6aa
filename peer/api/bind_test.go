package api_test

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/peer/api"
)

// waiting makes a pod with everything that a binding touches, and returns it as it is stored.
func waiting(t *testing.T, namespace, name string, edits ...func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	pod := boundPod(namespace, name, "")
	pod.Labels, pod.Annotations = map[string]string{"app": "a"}, map[string]string{"note": "n"}
	for _, edit := range edits {
		edit(pod)
	}
	made := must(admin.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}))(t)
	made.Status.NominatedNodeName = "elsewhere"
	made.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable}}
	return must(admin.CoreV1().Pods(namespace).UpdateStatus(t.Context(), made, metav1.UpdateOptions{}))(t)
}

func to(pod *corev1.Pod, node string) api.Change {
	bound := pod.DeepCopy()
	bound.Spec.NodeName = node
	return api.Change{Verb: api.Bind, Object: bound}
}

// TestBindFromWhatWasSeen: a binding that starts from the leader's copy stores what one that reads the pod stores, leaves that copy alone,
// and lets nothing pass that the other would not.
func TestBindFromWhatWasSeen(t *testing.T) {
	namespace(t, "bound")
	must(admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: "zoned", Labels: map[string]string{corev1.LabelTopologyZone: "z", corev1.LabelTopologyRegion: "r"},
	}}, metav1.CreateOptions{}))(t)
	seen, read := waiting(t, "bound", "seen"), waiting(t, "bound", "read")
	blind := to(read, "zoned")
	blind.Object.(*corev1.Pod).ResourceVersion = ""
	first := to(seen, "zoned")
	before := first.Object.DeepCopyObject()
	committed(t, first, blind)
	if !apiequality.Semantic.DeepEqual(before, first.Object) {
		t.Errorf("the leader's pod became %+v", first.Object)
	}
	got := must(admin.CoreV1().Pods("bound").Get(t.Context(), "seen", metav1.GetOptions{}))(t)
	want := must(admin.CoreV1().Pods("bound").Get(t.Context(), "read", metav1.GetOptions{}))(t)
	if got.Spec.NodeName != "zoned" || got.Labels[corev1.LabelTopologyZone] != "z" || got.Status.NominatedNodeName != "" || len(got.Status.Conditions) != 1 {
		t.Errorf("bound as %+v", got)
	}
	for _, pod := range []*corev1.Pod{got, want} {
		pod.Name, pod.UID, pod.ResourceVersion, pod.ManagedFields = "", "", "", nil
		pod.CreationTimestamp = metav1.Time{}
		for i := range pod.Status.Conditions {
			pod.Status.Conditions[i].LastTransitionTime = metav1.Time{}
		}
		for i := range pod.Spec.Volumes { // their names are drawn
			pod.Spec.Volumes[i].Name, pod.Spec.Containers[0].VolumeMounts[i].Name = fmt.Sprint(i), fmt.Sprint(i)
		}
	}
	if !apiequality.Semantic.DeepEqual(got, want) {
		t.Errorf("seen:\n%+v\nread:\n%+v", got, want)
	}
}

// TestBindRefuses: each of these is refused, also on the word of a leader that holds the very version.
func TestBindRefuses(t *testing.T) {
	namespace(t, "refusing")
	overtaken := waiting(t, "refusing", "overtaken")
	other := overtaken.DeepCopy()
	other.Labels["app"] = "b"
	must(admin.CoreV1().Pods("refusing").Update(t.Context(), other, metav1.UpdateOptions{}))(t)

	placed := waiting(t, "refusing", "placed")
	committed(t, to(placed, "first"))

	gone := waiting(t, "refusing", "gone")
	zero := int64(0)
	if err := admin.CoreV1().Pods("refusing").Delete(t.Context(), "gone", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}

	gated := waiting(t, "refusing", "gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/later"}} })

	replaced := waiting(t, "refusing", "replaced")
	replaced.UID, replaced.ResourceVersion = types.UID("another"), ""

	for _, pod := range []*corev1.Pod{overtaken, placed, gone, gated, replaced} {
		before := must(admin.CoreV1().Pods("refusing").List(t.Context(), metav1.ListOptions{}))(t)
		_, errs := shared.Server.Commit(t.Context(), leader, []api.Change{to(pod, "second"), to(pod, "third")})
		if err := errors.Join(errs...); !apierrors.IsConflict(errs[0]) && !apierrors.IsConflict(errs[1]) {
			t.Errorf("%s: %v, want a conflict", pod.Name, err)
		}
		_, errs = shared.Server.Commit(t.Context(), leader, []api.Change{to(pod, "second")})
		if !apierrors.IsConflict(errs[0]) {
			t.Errorf("%s: %v, want a conflict", pod.Name, errs[0])
		}
		after := must(admin.CoreV1().Pods("refusing").List(t.Context(), metav1.ListOptions{}))(t)
		if !apiequality.Semantic.DeepEqual(before.Items, after.Items) {
			t.Errorf("%s: something was written", pod.Name)
		}
	}
	if _, errs := shared.Server.Commit(t.Context(), leader, []api.Change{{Verb: api.Bind, Object: configMap("refusing", "c")}}); !apierrors.IsMethodNotSupported(errs[0]) {
		t.Errorf("a ConfigMap: %v", errs[0])
	}
}
