package schedule

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

// genNode draws a small node with zones, taints and cordons.
func genNode(t *rapid.T, name string) *corev1.Node {
	n := makeNode(name, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone"))
	n.Status.Allocatable = quantities(rapid.SampledFrom([]string{"500m", "1", "2"}).Draw(t, "cpu"), "2Gi")
	n.Status.Allocatable[corev1.ResourcePods] = *resource.NewQuantity(rapid.Int64Range(1, 6).Draw(t, "pods"), resource.DecimalSI)
	if rapid.IntRange(0, 9).Draw(t, "taint") == 0 {
		taint("t", "", rapid.SampledFrom([]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule}).Draw(t, "effect"))(n)
	}
	n.Spec.Unschedulable = rapid.IntRange(0, 12).Draw(t, "cordon") == 0
	if rapid.IntRange(0, 5).Draw(t, "unlabelled") == 0 {
		delete(n.Labels, corev1.LabelTopologyZone)
	}
	return n
}

// genPod draws a pod with a few of the constraints that interact.
func genPod(t *rapid.T, name string) *corev1.Pod {
	p := makePod(name, request(rapid.SampledFrom([]string{"0", "100m", "300m"}).Draw(t, "cpu"), rapid.SampledFrom([]string{"0", "100Mi", "600Mi"}).Draw(t, "memory")))
	p.Labels = map[string]string{"app": rapid.SampledFrom([]string{"web", "db"}).Draw(t, "app")}
	key := rapid.SampledFrom([]string{corev1.LabelHostname, corev1.LabelTopologyZone}).Draw(t, "key")
	switch rapid.IntRange(0, 7).Draw(t, "constraint") {
	case 0:
		selfAffinity(key, true)(p)
	case 1:
		selfAffinity(key, false)(p)
	case 2:
		spreadOver(key, int32(rapid.IntRange(1, 2).Draw(t, "skew")), corev1.DoNotSchedule)(p)
	case 3:
		spreadOver(key, 1, corev1.ScheduleAnyway)(p)
	case 4:
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: ptr.To(true)}}
		p.Labels["pod-template-hash"] = "h"
	case 5:
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 8080, ContainerPort: 80}}
	}
	if rapid.IntRange(0, 3).Draw(t, "prefers") == 0 {
		weight := int32(rapid.IntRange(1, 100).Draw(t, "weight"))
		term := corev1.WeightedPodAffinityTerm{Weight: weight, PodAffinityTerm: corev1.PodAffinityTerm{
			TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		}}
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		if p.Spec.Affinity.PodAffinity == nil {
			p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{}
		}
		p.Spec.Affinity.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{term}
	}
	return p
}

func genCluster(t *rapid.T) (nodes []*corev1.Node, pods []*corev1.Pod) {
	for i := range rapid.IntRange(0, 8).Draw(t, "nodes") {
		nodes = append(nodes, genNode(t, fmt.Sprintf("n%d", i)))
	}
	// Few templates, so that many pods are equal and share their answers.
	var templates []*corev1.Pod
	for range rapid.IntRange(1, 4).Draw(t, "templates") {
		templates = append(templates, genPod(t, "template"))
	}
	for i := range rapid.IntRange(1, 24).Draw(t, "pods") {
		p := templates[rapid.IntRange(0, len(templates)-1).Draw(t, "template")].DeepCopy()
		p.Name = fmt.Sprintf("p%02d", i)
		p.UID = types.UID("uid-" + p.Name)
		pods = append(pods, p)
	}
	return nodes, pods
}

func clusterView(nodes []*corev1.Node) *placement.View {
	v := placement.NewView()
	for _, n := range nodes {
		v.Upsert(n)
	}
	return v
}

func bound(p *corev1.Pod, node string) *corev1.Pod {
	p = p.DeepCopy()
	p.Spec.NodeName = node
	return p
}

// TestNeverOverCommits: whatever is asked, no node gets more than it has, no port twice, no
// anti-affinity is broken; and every refusal names a reason for every node.
func TestNeverOverCommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, pods := genCluster(t)
		v := clusterView(nodes)
		decisions := Schedule(v, pods, now)
		if len(decisions) != len(pods) {
			t.Fatalf("%d decisions about %d pods", len(decisions), len(pods))
		}
		for _, d := range decisions {
			if d.Node == "" {
				checkRefusal(t, d, len(nodes))
				continue
			}
			if n, _ := v.Node(d.Node); n.Object.Spec.Unschedulable {
				t.Fatalf("%s is on cordoned %s", d.Pod.Name, d.Node)
			}
			v.Upsert(bound(d.Pod, d.Node))
		}
		for _, n := range v.Nodes() {
			if n.Requested.MilliCPU > n.Allocatable.MilliCPU || n.Requested.Memory > n.Allocatable.Memory || n.Requested.Pods > n.Allocatable.Pods {
				t.Fatalf("%s: %+v asked for, %+v there", n.Name, n.Requested, n.Allocatable)
			}
			ports := 0
			for _, p := range n.Pods() {
				ports += len(p.Ports)
			}
			if ports > 1 {
				t.Fatalf("%s: port 8080 is taken %d times", n.Name, ports)
			}
		}
		checkAntiAffinity(t, v)
	})
}

func checkRefusal(t *rapid.T, d Decision, nodes int) {
	named := 0
	for _, n := range d.Unschedulable.Reasons {
		named += n
	}
	if named < nodes || d.Unschedulable.Message == "" || d.Unschedulable.Nodes != nodes {
		t.Fatalf("%s: %d nodes, but %+v", d.Pod.Name, nodes, d.Unschedulable)
	}
}

func checkAntiAffinity(t *rapid.T, v *placement.View) {
	all := v.AllPods()
	for _, p := range all {
		if p.Affinity == nil {
			continue
		}
		for _, term := range p.Affinity.RequiredAnti {
			for _, o := range all {
				if o == p || !term.Matches(o.Object, nil) {
					continue
				}
				a, _ := v.Node(p.Object.Spec.NodeName)
				b, _ := v.Node(o.Object.Spec.NodeName)
				if value, ok := a.Object.Labels[term.TopologyKey]; ok && b.Object.Labels[term.TopologyKey] == value {
					t.Fatalf("%s and %s share %s=%s against anti-affinity", p.Object.Name, o.Object.Name, term.TopologyKey, value)
				}
			}
		}
	}
}

// TestBatchEqualsOneByOne: deciding many pods against the evolving copy gives the same as
// deciding each against a fresh view that holds the earlier ones.
func TestBatchEqualsOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, pods := genCluster(t)
		batch := Schedule(clusterView(nodes), pods, now)
		v := clusterView(nodes)
		for _, d := range batch {
			single := Schedule(v, []*corev1.Pod{d.Pod}, now)[0]
			if single.Node != d.Node {
				t.Fatalf("%s: %q in the batch, %q alone", d.Pod.Name, d.Node, single.Node)
			}
			if d.Node != "" {
				v.Upsert(bound(d.Pod, d.Node))
			} else if single.Unschedulable.Message != d.Unschedulable.Message {
				t.Fatalf("%s:\n%s in the batch,\n%s alone", d.Pod.Name, d.Unschedulable.Message, single.Unschedulable.Message)
			}
		}
	})
}

// TestGroupsEqualOneByOne: answering equal pods from groups of nodes gives what looking at every
// node for every pod gives, texts and victims included.
func TestGroupsEqualOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := placement.NewView()
		nodes := rapid.IntRange(fewNodes, 3*fewNodes).Draw(t, "nodes")
		for i := range nodes {
			v.Upsert(genNode(t, fmt.Sprintf("n%02d", i)))
		}
		for i := range rapid.IntRange(0, 30).Draw(t, "placed") {
			p := genPod(t, fmt.Sprintf("old-%d", i))
			p.Spec.NodeName = fmt.Sprintf("n%02d", rapid.IntRange(0, nodes-1).Draw(t, "node"))
			p.Spec.Priority = ptr.To(rapid.Int32Range(-1, 1).Draw(t, "priority"))
			v.Upsert(p)
		}
		var templates, pods []*corev1.Pod
		for range rapid.IntRange(1, 3).Draw(t, "templates") {
			template := genPod(t, "template")
			template.Spec.Priority = ptr.To(rapid.Int32Range(0, 2).Draw(t, "priority"))
			templates = append(templates, template)
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "pods") {
			p := rapid.SampledFrom(templates).Draw(t, "template").DeepCopy()
			p.Name = fmt.Sprintf("p%02d", i)
			p.UID = types.UID("uid-" + p.Name)
			if rapid.Bool().Draw(t, "own label") {
				p.Labels["index"] = p.Name
			}
			pods = append(pods, p)
		}
		queue := waiting(v, pods)
		b, slow := newBatch(v, queue, now), newBatch(v, queue, now)
		slow.oneByOne, slow.labelsMatter = true, true
		for _, p := range queue {
			fast, plain := b.decide(p), slow.decide(p)
			if fast.Node != plain.Node || !reflect.DeepEqual(fast.Unschedulable, plain.Unschedulable) || !reflect.DeepEqual(fast.Preempt, plain.Preempt) {
				t.Fatalf("%s: %s %+v %+v by groups,\n%s %+v %+v one by one", p.Object.Name, fast.Node, fast.Unschedulable, fast.Preempt,
					plain.Node, plain.Unschedulable, plain.Preempt)
			}
		}
	})
}

// TestOrderDoesNotMatter: the order in which the view heard of nodes, and the order in which pods
// are listed, change nothing; and Explain agrees with Schedule.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, pods := genCluster(t)
		first := Schedule(clusterView(nodes), pods, now)
		slices.Reverse(nodes)
		slices.Reverse(pods)
		second := Schedule(clusterView(nodes), pods, now)
		for i := range first {
			if first[i].Pod.Name != second[i].Pod.Name || first[i].Node != second[i].Node {
				t.Fatalf("decision %d: %s on %q, then %s on %q", i, first[i].Pod.Name, first[i].Node, second[i].Pod.Name, second[i].Node)
			}
		}
		if len(first) == 0 {
			return
		}
		best := Explain(clusterView(nodes), first[0].Pod, now).Nodes
		fitting := 0
		for _, e := range best {
			if len(e.Reasons) == 0 {
				fitting++
			}
		}
		if (first[0].Node == "") != (fitting == 0) {
			t.Fatalf("placed on %q, but %d nodes are said to fit", first[0].Node, fitting)
		}
		if fitting > 0 {
			i := slices.IndexFunc(best, func(e NodeExplanation) bool { return e.Node == first[0].Node })
			if best[i].Total != best[0].Total {
				t.Fatalf("placed on %s with %d, but %s has %d", best[i].Node, best[i].Total, best[0].Node, best[0].Total)
			}
		}
	})
}
