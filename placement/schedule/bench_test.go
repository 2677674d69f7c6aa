package schedule

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// BenchmarkGrowth shows what a call costs in clusters of different sizes: the first pod of a kind
// ("first": a look at each node), and a further equal one ("further": a look at each group).
func BenchmarkGrowth(b *testing.B) {
	kinds := []struct {
		name string
		edit func(*corev1.Pod)
	}{
		{"basic", func(*corev1.Pod) {}},
		{"replicas", func(p *corev1.Pod) {
			p.Labels["pod-template-hash"] = "h"
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: ptr.To(true)}}
		}},
		{"spread", spreadOver(corev1.LabelTopologyZone, 5, corev1.DoNotSchedule)},
		{"antiaffinity", selfAffinity(corev1.LabelHostname, true)},
		{"preemption", func(p *corev1.Pod) { request("3", "1Gi")(p); priority(10)(p) }},
	}
	for _, kind := range kinds {
		for _, nodes := range []int{500, 5000, 20000} {
			v := placement.NewView()
			for i := range nodes {
				name := fmt.Sprint("node-", i)
				v.Upsert(makeNode(name, fmt.Sprint("zone-", i%10)))
				if kind.name == "preemption" {
					v.Upsert(makePod(fmt.Sprint("low-", i), request("3", "1Gi"), onNode(name)))
				}
			}
			pod := placement.NewPod(makePod("pod", kind.edit))
			b.Run(fmt.Sprintf("first/%s/nodes=%d", kind.name, nodes), func(b *testing.B) {
				for b.Loop() {
					newBatch(v, []*placement.Pod{pod}, now).decide(pod)
				}
			})
			b.Run(fmt.Sprintf("further/%s/nodes=%d", kind.name, nodes), func(b *testing.B) {
				var batch *batch
				decided := 0
				next := func() {
					equal, object := *pod, *pod.Object
					object.UID = types.UID(fmt.Sprint(decided))
					equal.Object = &object
					if d := batch.decide(&equal); d.Node == "" && d.Preempt == nil {
						b.Fatal(d.Unschedulable.Message)
					}
					decided++
				}
				begin := func() {
					batch, decided = newBatch(v, []*placement.Pod{pod}, now), 0
					next()
					next()
				}
				begin()
				for b.Loop() {
					if decided >= nodes/2 {
						b.StopTimer()
						begin()
						b.StartTimer()
					}
					next()
				}
			})
		}
	}
}
