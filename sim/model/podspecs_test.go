package model

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/consensus/store"
)

// TestSharedPodsAreWhatWasEncoded: whatever pods share, each decodes to what it was, and none to a part of another.
func TestSharedPodsAreWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var specs podSpecs
		draw := func(what string, values ...string) string { return rapid.SampledFrom(values).Draw(t, what) }
		for i := range rapid.IntRange(1, 12).Draw(t, "pods") {
			w := Workload{Name: draw("workload", "web", "db"), Requests: list(draw("cpu", "100m", "200m"), "64Mi", "")}
			template := template(w, map[string]string{"app": draw("label", "a", "b")})
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: w.Name, Name: fmt.Sprint(w.Name, i), GenerateName: w.Name + "-", UID: types.UID(fmt.Sprint("uid", i)), Labels: template.Labels,
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: draw("kind", "ReplicaSet", "Job"), Name: w.Name, UID: types.UID(draw("owner", "a", "b")), Controller: ptr.To(true)}},
				},
				Spec:   template.Spec,
				Status: corev1.PodStatus{Phase: corev1.PodPhase(draw("phase", "Pending", "Running"))},
			}
			pod.Spec.NodeName = draw("node", "", "n1", "n2")
			if rapid.Bool().Draw(t, "alone") {
				pod.OwnerReferences = nil
			}
			value := encode(pod)
			want := &corev1.Pod{}
			if err := want.Unmarshal(value); err != nil {
				t.Fatal(err)
			}
			want.ResourceVersion = store.Revision(i + 1).String()
			if got := specs.decode(value, store.Revision(i+1)); !apiequality.Semantic.DeepEqual(got, want) {
				t.Fatalf("decoded %v\nwant %v", got, want)
			}
		}
	})
}
