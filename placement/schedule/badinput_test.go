package schedule

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

// genAbsurd draws amounts that validation would refuse, beside sane ones.
func genAbsurd(t *rapid.T) resource.Quantity {
	return *resource.NewQuantity(rapid.SampledFrom([]int64{0, 1, 2, 4, -1, math.MinInt64, math.MaxInt64, 1 << 53, 1 << 62}).Draw(t, "amount"), resource.DecimalSI)
}

func genAbsurdList(t *rapid.T) corev1.ResourceList {
	l := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{"cpu", "memory", "ephemeral-storage", "pods", "example.com/gpu", "", "hugepages-2Mi"} {
		if rapid.Bool().Draw(t, "has") {
			l[name] = genAbsurd(t)
		}
	}
	return l
}

func genAbsurdSelector(t *rapid.T) *metav1.LabelSelector {
	return rapid.SampledFrom([]*metav1.LabelSelector{
		nil, {}, {MatchLabels: map[string]string{"app": "web"}},
		{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Nonsense"}}},
		{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "///", Operator: metav1.LabelSelectorOpIn, Values: []string{"\x00"}}}},
		{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpExists}, {Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist},
		}},
	}).Draw(t, "selector")
}

func genAbsurdPod(t *rapid.T, name string) *corev1.Pod {
	p := makePod(name)
	key := rapid.SampledFrom([]string{"", corev1.LabelHostname, "no/such/key", corev1.LabelTopologyZone}).Draw(t, "key")
	p.Spec.Containers[0].Resources.Requests = genAbsurdList(t)
	p.Spec.Overhead = genAbsurdList(t)
	p.Spec.Priority = ptr.To(rapid.SampledFrom([]int32{0, math.MinInt32, math.MaxInt32}).Draw(t, "priority"))
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: rapid.SampledFrom([]int32{0, 80, -1, math.MaxInt32}).Draw(t, "port")}}
	if rapid.Bool().Draw(t, "spread") {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: rapid.SampledFrom([]int32{0, 1, -1, math.MaxInt32, math.MinInt32}).Draw(t, "skew"), TopologyKey: key, LabelSelector: genAbsurdSelector(t),
			MinDomains:        ptr.To(rapid.SampledFrom([]int32{0, -5, math.MaxInt32}).Draw(t, "domains")),
			WhenUnsatisfiable: rapid.SampledFrom([]corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway, "?"}).Draw(t, "kind"),
		}}
	}
	term := corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: genAbsurdSelector(t), NamespaceSelector: genAbsurdSelector(t)}
	weight := rapid.SampledFrom([]int32{0, -100, math.MaxInt32, math.MinInt32}).Draw(t, "weight")
	switch rapid.IntRange(0, 4).Draw(t, "affinity") {
	case 0:
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}}
	case 1:
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term},
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: weight, PodAffinityTerm: term}}}}
	case 2:
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n0", "no such node"}}}}}},
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: weight, Preference: corev1.NodeSelectorTerm{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpGt, Values: []string{"x"}}}}}},
		}}
	case 3:
		p.Spec.Tolerations = []corev1.Toleration{{Operator: "?", Key: key}}
		p.Spec.Volumes = []corev1.Volume{{}, {Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}}}
	}
	return p
}

func genAbsurdNode(t *rapid.T, name string) *corev1.Node {
	n := makeNode(name, "a")
	n.Status.Allocatable = genAbsurdList(t)
	n.Status.Allocatable[corev1.ResourcePods] = genAbsurd(t)
	if rapid.Bool().Draw(t, "bare") {
		n.Labels = nil
	}
	n.Labels = map[string]string{"": strings.Repeat("x", rapid.SampledFrom([]int{0, 100000}).Draw(t, "length")), corev1.LabelHostname: "shared"}
	n.Spec.Taints = []corev1.Taint{{Effect: rapid.SampledFrom([]corev1.TaintEffect{"", "?", corev1.TaintEffectPreferNoSchedule}).Draw(t, "effect")}}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"demo:1", "demo:1", ""}, SizeBytes: rapid.SampledFrom([]int64{-1, math.MaxInt64}).Draw(t, "size")}}
	return n
}

// TestAbsurdInput: whatever is asked of whatever nodes, every pod gets an answer, no node more than
// it has, and a clock that goes back changes no more than who is taken for old.
func TestAbsurdInput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := placement.NewView()
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			v.Upsert(genAbsurdNode(t, fmt.Sprintf("n%d", i)))
		}
		for i := range rapid.IntRange(0, 2).Draw(t, "placed") {
			p := genAbsurdPod(t, fmt.Sprintf("old%d", i))
			p.Spec.NodeName = rapid.SampledFrom([]string{"n0", "gone"}).Draw(t, "node")
			p.Status.StartTime = ptr.To(metav1.NewTime(now.Add(time.Hour)))
			v.Upsert(p)
		}
		before := map[string]placement.Resources{}
		for _, n := range v.Nodes() {
			before[n.Name] = n.Requested
		}
		var pods []*corev1.Pod
		for i := range rapid.IntRange(1, 4).Draw(t, "pods") {
			pods = append(pods, genAbsurdPod(t, fmt.Sprintf("p%d", i)))
		}
		decisions := Schedule(v, pods, now)
		if again := Schedule(v, pods, now); !reflect.DeepEqual(decisions, again) {
			t.Fatalf("asked twice: %+v, %+v", decisions, again)
		}
		if len(decisions) != len(pods) || len(Schedule(v, pods, now.Add(-1000*time.Hour))) != len(pods) {
			t.Fatalf("%d decisions about %d pods", len(decisions), len(pods))
		}
		for _, d := range decisions {
			if d.Node == "" && d.Unschedulable.Message == "" {
				t.Fatalf("no reason for %s", d.Pod.Name)
			}
			if d.Node != "" {
				v.Upsert(bound(d.Pod, d.Node))
			}
			Explain(v, d.Pod, now)
		}
		for _, n := range v.Nodes() {
			r, a := n.Requested, n.Allocatable
			if b := before[n.Name]; r.MilliCPU > max(a.MilliCPU, b.MilliCPU) || r.Memory > max(a.Memory, b.Memory) || r.Pods > max(a.Pods, b.Pods) {
				t.Fatalf("%s: %+v asked for, %+v there", n.Name, r, a)
			}
		}
	})
}

// FuzzSchedule feeds objects as they might come out of a damaged store.
func FuzzSchedule(f *testing.F) {
	pod, _ := makePod("p", selfAffinity(corev1.LabelHostname, true), spreadOver("zone", 1, corev1.DoNotSchedule), priority(3)).Marshal()
	node, _ := makeNode("n0", "a", taint("x", "", corev1.TaintEffectNoSchedule)).Marshal()
	f.Add(pod, pod, node)
	f.Add([]byte{}, pod, []byte{})
	f.Fuzz(func(t *testing.T, placed, waits, node []byte) {
		var p, w corev1.Pod
		var n corev1.Node
		if p.Unmarshal(placed) != nil || w.Unmarshal(waits) != nil || n.Unmarshal(node) != nil {
			return
		}
		p.UID, w.UID, w.Spec.NodeName = types.UID("placed"), types.UID("waits"), ""
		v := viewOf(&n, &p, &w)
		for _, d := range Schedule(v, []*corev1.Pod{&w}, now) {
			if d.Node == "" && d.Unschedulable == nil {
				t.Fatalf("%+v", d)
			}
		}
		Explain(v, &w, now)
	})
}

// TestContradictions: specs that nothing can satisfy are told so.
func TestContradictions(t *testing.T) {
	affinity := func(terms ...corev1.NodeSelectorTerm) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
		}
	}
	name := func(names ...string) corev1.NodeSelectorRequirement {
		return corev1.NodeSelectorRequirement{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: names}
	}
	for _, test := range []struct {
		name string
		edit func(*corev1.Pod)
		want string
	}{
		{"two nodes at once", affinity(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{name("n0"), name("n1")}}), "0/1 nodes are available: pod affinity terms conflict."},
		{"a node that is not there", affinity(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{name("n9")}}), "0/1 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity]."},
		{"no terms", affinity(), "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."},
		{"more than any node has", request("1000", "1Pi"), "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."},
	} {
		d := one(t, viewOf(makeNode("n0", "a")), makePod("p", test.edit))
		if d.Unschedulable == nil || !strings.HasPrefix(d.Unschedulable.Message, test.want+" preemption: ") {
			t.Errorf("%s: %+v", test.name, d.Unschedulable)
		}
	}
}
