package peer

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// TestAPodOfHigherPriorityGetsRoom preempts over the whole path: the victim is told why, the room is kept, and taken when it is free.
func TestAPodOfHigherPriorityGetsRoom(t *testing.T) {
	f := newField(t, map[string]string{"only": "64"})
	namespace := f.namespace(t)
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{GenerateName: "high-"}, Value: 1000}
	class, err := f.client.SchedulingV1().PriorityClasses().Create(t.Context(), class, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.client.SchedulingV1().PriorityClasses().Delete(context.Background(), class.Name, metav1.DeleteOptions{})
	})
	create := func(name, priority string) {
		t.Helper()
		_, err := f.client.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{PriorityClassName: priority, Containers: []corev1.Container{{
				// Room that pods left over from other tests do not take.
				Name: "main", Image: "x", Ports: []corev1.ContainerPort{{ContainerPort: 7007, HostPort: 7007}},
			}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	get := func(name string) *corev1.Pod {
		t.Helper()
		pod, err := f.client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	create("low", "")
	await(t, func() string {
		if node := get("low").Spec.NodeName; node != "only" {
			return fmt.Sprintf("the low pod is on %q: %+v", node, get("low").Status.Conditions)
		}
		return ""
	})
	create("high", class.Name)
	await(t, func() string {
		low, high := get("low"), get("high")
		why := placement.PodCondition(low, corev1.DisruptionTarget)
		if low.DeletionTimestamp == nil || why == nil || why.Reason != corev1.PodReasonPreemptionByScheduler {
			return fmt.Sprintf("the victim: deleted %v, condition %v", low.DeletionTimestamp, why)
		}
		if high.Status.NominatedNodeName != "only" || high.Spec.NodeName != "" {
			return fmt.Sprintf("nominated to %q, on %q", high.Status.NominatedNodeName, high.Spec.NodeName)
		}
		return ""
	})
	// Its node has ended the victim.
	zero := int64(0)
	f.ledgers["only"].Remove(get("low").UID)
	if err := f.client.CoreV1().Pods(namespace).Delete(t.Context(), "low", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	await(t, func() string {
		if node := get("high").Spec.NodeName; node != "only" {
			return fmt.Sprintf("the high pod is on %q", node)
		}
		return ""
	})
}
