package schedule

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// BenchmarkSchedule decides 1,000 pods per iteration on clusters of 1,000 and 5,000 nodes;
// figures are pods per second on one core, first look at the nodes included. "distinct" pods
// share nothing: each is its own class.
func BenchmarkSchedule(b *testing.B) {
	replica := func(p *corev1.Pod) {
		p.Labels["pod-template-hash"] = "h"
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: ptr.To(true)}}
	}
	cases := []struct {
		name string
		edit func(i int) func(*corev1.Pod)
	}{
		{"basic", func(int) func(*corev1.Pod) { return func(*corev1.Pod) {} }},
		{"replicas", func(int) func(*corev1.Pod) { return replica }},
		{"spread", func(int) func(*corev1.Pod) { return spreadOver(corev1.LabelTopologyZone, 5, corev1.DoNotSchedule) }},
		{"antiaffinity", func(int) func(*corev1.Pod) { return selfAffinity(corev1.LabelHostname, true) }},
		{"distinct", func(i int) func(*corev1.Pod) {
			return func(p *corev1.Pod) { p.Labels["i"] = fmt.Sprint(i) }
		}},
	}
	for _, nodes := range []int{1000, 5000} {
		v := placement.NewView()
		for i := range nodes {
			v.Upsert(makeNode(fmt.Sprintf("node-%d", i), fmt.Sprintf("zone-%d", i%10)))
		}
		for _, c := range cases {
			pods := make([]*corev1.Pod, 1000)
			for i := range pods {
				pods[i] = makePod(fmt.Sprintf("pod-%d", i), c.edit(i))
			}
			b.Run(fmt.Sprintf("%s/%d", c.name, nodes), func(b *testing.B) {
				for b.Loop() {
					for _, d := range Schedule(v, pods, now) {
						if d.Node == "" {
							b.Fatal(d.Unschedulable.Message)
						}
					}
				}
				b.ReportMetric(float64(b.N*len(pods))/b.Elapsed().Seconds(), "pods/s")
			})
		}
	}
}
