package workload

import (
	"fmt"
	"sort"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

// TestTemplateHashIsUpstreams compares the pod-template-hash with upstream's code.
func TestTemplateHashIsUpstreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		template := corev1.PodTemplateSpec{}
		template.Labels = rapid.MapOf(rapid.StringN(1, 8, 20), rapid.String()).Draw(t, "labels")
		template.Spec.Containers = []corev1.Container{{Name: rapid.String().Draw(t, "name"), Image: rapid.String().Draw(t, "image")}}
		template.Spec.TerminationGracePeriodSeconds = rapid.Ptr(rapid.Int64(), true).Draw(t, "grace")
		collisions := rapid.Ptr(rapid.Int32Range(0, 5), true).Draw(t, "collisions")
		if got, want := templateHash(&template, collisions), controller.ComputeHash(&template, collisions); got != want {
			t.Fatalf("hash %s, upstream's is %s", got, want)
		}
	})
}

// TestRankingIsUpstreams compares which pods go first with upstream's order.
func TestRankingIsUpstreams(t *testing.T) {
	now := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		var pods []*placement.Pod
		for i := range rapid.IntRange(1, 12).Draw(t, "pods") {
			pods = append(pods, placement.NewPod(genRanked(t, i, now)))
		}
		together := map[string]int{}
		upstream := controller.ActivePodsWithRanks{Now: metav1.NewTime(now)}
		for _, p := range pods {
			together[p.Object.Spec.NodeName]++
		}
		for _, p := range pods {
			upstream.Pods = append(upstream.Pods, p.Object)
			upstream.Rank = append(upstream.Rank, together[p.Object.Spec.NodeName])
		}
		ranked := rankForDeletion(pods, pods, now)
		sort.Sort(upstream)
		for i, want := range upstream.Pods {
			if got := ranked[i].Object; got.Name != want.Name {
				t.Fatalf("place %d: %s, upstream has %s", i, got.Name, want.Name)
			}
		}
	})
}

func genRanked(t *rapid.T, i int, now time.Time) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.UID = fmt.Sprintf("p%d", i), types.UID(fmt.Sprintf("uid-%02d", i))
	p.Spec.NodeName = rapid.SampledFrom([]string{"", "n0", "n1", "n2"}).Draw(t, "node")
	p.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{corev1.PodPending, corev1.PodUnknown, corev1.PodRunning}).Draw(t, "phase")
	ago := func(name string) metav1.Time {
		return metav1.NewTime(now.Add(-time.Duration(1<<rapid.IntRange(20, 50).Draw(t, name)) * time.Nanosecond))
	}
	p.CreationTimestamp = ago("created")
	if rapid.Bool().Draw(t, "ready") {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: ago("ready since")}}
	}
	if cost := rapid.SampledFrom([]string{"", "", "5", "-5", "007", "x"}).Draw(t, "cost"); cost != "" {
		p.Annotations = map[string]string{corev1.PodDeletionCost: cost}
	}
	p.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: rapid.Int32Range(0, 2).Draw(t, "restarts")}}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "side", RestartCount: rapid.Int32Range(0, 2).Draw(t, "sidecar restarts")}}
	return p
}
