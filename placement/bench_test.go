package placement

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// fullNodes and fullPods make a cluster of as many nodes, with pods of ReplicaSets of 50.
func fullNodes(n int) []*corev1.Node {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		name := fmt.Sprint("node-", i)
		nodes[i] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprint("zone-", i%3),
		}}}
		nodes[i].Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourcePods: resource.MustParse("110")}
	}
	return nodes
}

func fullPods(n, nodes int) []*corev1.Pod {
	pods := make([]*corev1.Pod, n)
	for i := range pods {
		set := fmt.Sprint("app-", i/50)
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprint("team-", i/50%100), Name: fmt.Sprint(set, "-", i%50), UID: types.UID(fmt.Sprint("uid-", i)),
			Labels:          map[string]string{"app": set, "pod-template-hash": "5d4f8c7b9"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: KindReplicaSet, Name: set, UID: types.UID(set), Controller: ptr.To(true)}},
		}}
		p.Spec.NodeName = fmt.Sprint("node-", i%nodes)
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: "app:1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
		}}}}
		p.Status.Phase = corev1.PodRunning
		pods[i] = p
	}
	return pods
}

func build(nodes []*corev1.Node, pods []*corev1.Pod) *View {
	v := NewView()
	for _, n := range nodes {
		v.Upsert(n)
	}
	for _, p := range pods {
		v.Upsert(p)
	}
	return v
}

// BenchmarkTakeOver builds the view of a shard of 20,000 pods in a cluster of 5,000 nodes, from
// decoded objects: what a new leader does before its first decision.
func BenchmarkTakeOver(b *testing.B) {
	nodes, pods := fullNodes(5000), fullPods(20000, 5000)
	for b.Loop() {
		if v := build(nodes, pods); v.PodCount() != len(pods) {
			b.Fatal(v.PodCount())
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/takeover")
}

// BenchmarkMemory reports what a view of 150,000 pods on 5,000 nodes takes beside the objects
// themselves, and what those take.
func BenchmarkMemory(b *testing.B) {
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for range b.N {
		empty := heap()
		nodes, pods := fullNodes(5000), fullPods(150000, 5000)
		objects := heap()
		v := build(nodes, pods)
		full := heap()
		b.ReportMetric((objects-empty)/(1<<20), "MiB-objects")
		b.ReportMetric((full-objects)/(1<<20), "MiB-view")
		runtime.KeepAlive(v)
		runtime.KeepAlive(nodes)
		runtime.KeepAlive(pods)
	}
}

// BenchmarkChange is the cost of one pod's change of status in clusters of different sizes: it
// should not grow.
func BenchmarkChange(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		pods := fullPods(nodes*30, nodes)
		v := build(fullNodes(nodes), pods)
		b.Run(fmt.Sprintf("nodes=%d/pods=%d", nodes, len(pods)), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				changed := *pods[(i*7919)%len(pods)]
				changed.Status.PodIP = "10.0.0.1"
				v.Upsert(&changed)
				if i%1000 == 0 {
					v.TakeDirty()
				}
			}
		})
	}
}
