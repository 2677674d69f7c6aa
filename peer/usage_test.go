package peer

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
	"shoal/runtime/pods"
)

// TestForeignPodsAreReported: a leader learns of another shard's pod what it takes, and what affinity and preemption read of it.
func TestForeignPodsAreReported(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "p", UID: "u", Labels: map[string]string{"app": "db"}}}
	pod.Spec.NodeName, pod.Spec.Priority = "n1", ptr.To[int32](7)
	pod.Spec.Containers = []corev1.Container{{
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("300m"), "example.com/gpu": resource.MustParse("1")}},
		Ports:     []corev1.ContainerPort{{HostPort: 80}},
	}}
	pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{}}
	ledger := pods.NewLedger()
	ledger.Upsert(pod)
	usage := usageOf("n1", ledger.Held(time.Now()))
	if len(usage.Pods) != 1 {
		t.Fatalf("%+v", usage)
	}
	got, want := placement.NewPod(usage.Pods[0]), placement.NewPod(pod)
	if got.Key() != want.Key() || !reflect.DeepEqual(got.Requests, want.Requests) || !reflect.DeepEqual(got.Ports, want.Ports) ||
		*got.Object.Spec.Priority != 7 || got.Object.Labels["app"] != "db" || got.Affinity == nil || !reflect.DeepEqual(usage.Granted, want.Requests) {
		t.Errorf("%+v of %+v, granted %+v", got, got.Object, usage.Granted)
	}
}
