package peer

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// TestStoredObjectsAreReadWithDefaults: an object that an earlier version has stored, which did not know all fields, is decided upon as it
// is shown by the API.
func TestStoredObjectsAreReadWithDefaults(t *testing.T) {
	read, err := decode([]byte(`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns"},
		"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}`), 7)
	if err != nil {
		t.Fatal(err)
	}
	d := read.(*appsv1.Deployment)
	switch {
	case d.Spec.Replicas == nil || *d.Spec.Replicas != 1 || d.Spec.RevisionHistoryLimit == nil || d.Spec.ProgressDeadlineSeconds == nil:
		t.Errorf("spec %+v", d.Spec)
	case d.Spec.Strategy.RollingUpdate == nil || d.Spec.Strategy.RollingUpdate.MaxSurge == nil:
		t.Errorf("strategy %+v", d.Spec.Strategy)
	case d.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyAlways || d.Spec.Template.Spec.SchedulerName == "":
		t.Errorf("template %+v", d.Spec.Template.Spec)
	}
	if _, err := decode([]byte(`{"apiVersion": "apps/v9", "kind": "Deployment"}`), 7); err == nil {
		t.Error("a version of the future was read")
	}
	if _, err := decode([]byte("\x00\x01"), 7); err == nil {
		t.Error("garbage was read")
	}
}

// BenchmarkReadPod is what a leader that takes a shard over does for each of its pods, besides indexing it.
func BenchmarkReadPod(b *testing.B) {
	stored := []byte(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decode(stored, 7); err != nil {
			b.Fatal(err)
		}
	}
}
