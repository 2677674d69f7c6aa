package schedule

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func quantities(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// makeNode is a node of 4 cores, 8 GiB and 110 pods in a zone.
func makeNode(name, zone string, edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: zone}
	n.Status.Allocatable = quantities("4", "8Gi")
	n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("110")
	for _, edit := range edits {
		edit(n)
	}
	return n
}

// makePod is a pod of one container that asks for 100m and 128 MiB.
func makePod(name string, edits ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.UID = name, "default", types.UID("uid-"+name)
	p.Labels = map[string]string{"app": "web"}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "demo:1", Resources: corev1.ResourceRequirements{Requests: quantities("100m", "128Mi")}}}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func request(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = quantities(cpu, memory) }
}

func onNode(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = name } }

func taint(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func viewOf(objects ...placement.Object) *placement.View {
	v := placement.NewView()
	for _, o := range objects {
		v.Upsert(o)
	}
	return v
}

func one(t *testing.T, v *placement.View, pod *corev1.Pod) Decision {
	t.Helper()
	decisions := Schedule(v, []*corev1.Pod{pod}, now)
	if len(decisions) != 1 {
		t.Fatalf("got %d decisions about one pod", len(decisions))
	}
	return decisions[0]
}

func selfAffinity(key string, anti bool) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		term := []corev1.PodAffinityTerm{{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}
		p.Spec.Affinity = &corev1.Affinity{}
		if anti {
			p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: term}
		} else {
			p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: term}
		}
	}
}

func spreadOver(key string, skew int32, kind corev1.UnsatisfiableConstraintAction) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: skew, TopologyKey: key, WhenUnsatisfiable: kind,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		})
	}
}

// TestUnschedulable checks the texts that users see.
func TestUnschedulable(t *testing.T) {
	full := func(i int) *corev1.Pod {
		return makePod(fmt.Sprintf("full-%d", i), request("4", "1Gi"), onNode(fmt.Sprintf("n%d", i)))
	}
	tests := []struct {
		name    string
		objects []placement.Object
		pod     *corev1.Pod
		want    string
	}{
		{
			name: "no nodes", pod: makePod("p"),
			want: "no nodes available to schedule pods",
		},
		{
			name: "mixed",
			objects: []placement.Object{
				makeNode("n0", "a"), makeNode("n1", "a"), makeNode("n2", "a"), full(0), full(1), full(2),
				makeNode("n3", "b", taint("gpu", "yes", corev1.TaintEffectNoSchedule)),
				makeNode("n4", "b", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
			},
			pod: makePod("p"),
			want: "0/5 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 3 Insufficient cpu. " +
				"preemption: 0/5 nodes are available: 2 Preemption is not helpful for scheduling, 3 No preemption victims found for incoming pod.",
		},
		{
			name:    "beyond any node",
			objects: []placement.Object{makeNode("n0", "a")},
			pod:     makePod("p", request("100", "100Gi")),
			want: "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory. " +
				"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
		{
			name:    "absurd request does not wrap around",
			objects: []placement.Object{makeNode("n0", "a")},
			pod:     makePod("p", request("9223372036854775807", "9223372036854775807")),
			want: "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory. " +
				"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
		{
			name:    "node selector",
			objects: []placement.Object{makeNode("n0", "a")},
			pod:     makePod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			want: "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. " +
				"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
		{
			name: "host port, no preemption wanted",
			objects: []placement.Object{makeNode("n0", "a"), makePod("other", onNode("n0"), func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, ContainerPort: 80}}
			})},
			pod: makePod("p", func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, HostIP: "10.0.0.1", ContainerPort: 8080}}
				p.Spec.PreemptionPolicy = ptr.To(corev1.PreemptNever)
			}),
			want: "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. " +
				"preemption: not eligible due to preemptionPolicy=Never.",
		},
		{
			name:    "anti-affinity of an existing pod",
			objects: []placement.Object{makeNode("n0", "a"), makePod("other", onNode("n0"), selfAffinity(corev1.LabelHostname, true))},
			pod:     makePod("p"),
			want: "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules. " +
				"preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
		},
		{
			name: "missing claim", objects: []placement.Object{makeNode("n0", "a")},
			pod: makePod("p", func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
				}}}
			}),
			want: `0/1 nodes are available: persistentvolumeclaim "data" not found. ` +
				"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
		{
			name:    "spread without the label",
			objects: []placement.Object{makeNode("n0", "a")},
			pod:     makePod("p", spreadOver("rack", 1, corev1.DoNotSchedule)),
			want: "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label). " +
				"preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := one(t, viewOf(test.objects...), test.pod)
			if d.Unschedulable == nil {
				t.Fatalf("placed on %s", d.Node)
			}
			if d.Unschedulable.Message != test.want {
				t.Errorf("message\n got %s\nwant %s", d.Unschedulable.Message, test.want)
			}
		})
	}
}

// TestChoice checks which node is preferred, and that rules are kept.
func TestChoice(t *testing.T) {
	prefer := func(zone string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 10, Preference: corev1.NodeSelectorTerm{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{zone}}},
				}}},
			}}
		}
	}
	tests := []struct {
		name    string
		objects []placement.Object
		pod     *corev1.Pod
		want    string
	}{
		{"the emptier node", []placement.Object{makeNode("n0", "a"), makeNode("n1", "a"), makePod("other", request("2", "4Gi"), onNode("n0"))}, makePod("p"), "n1"},
		{"not the lost one", []placement.Object{makeNode("n0", "a", taint(corev1.TaintNodeUnreachable, "", corev1.TaintEffectNoSchedule)), makeNode("n1", "a")}, makePod("p"), "n1"},
		{"preferred zone", []placement.Object{makeNode("n0", "a"), makeNode("n1", "b")}, makePod("p", prefer("b")), "n1"},
		{"avoid soft taint", []placement.Object{makeNode("n0", "a", taint("old", "", corev1.TaintEffectPreferNoSchedule)), makeNode("n1", "a")}, makePod("p"), "n1"},
		{"near its like", []placement.Object{makeNode("n0", "a"), makeNode("n1", "b"), makePod("other", onNode("n1"))}, makePod("p", selfAffinity(corev1.LabelTopologyZone, false)), "n1"},
		{"away from its like", []placement.Object{makeNode("n0", "a"), makeNode("n1", "b"), makePod("other", onNode("n1"))}, makePod("p", selfAffinity(corev1.LabelTopologyZone, true)), "n0"},
		{"first of a group", []placement.Object{makeNode("n0", "a")}, makePod("p", selfAffinity(corev1.LabelTopologyZone, false)), "n0"},
		{"even zones", []placement.Object{makeNode("n0", "a"), makeNode("n1", "b"), makePod("other", onNode("n1"))}, makePod("p", spreadOver(corev1.LabelTopologyZone, 1, corev1.DoNotSchedule)), "n0"},
		{"where the image is", []placement.Object{makeNode("n0", "a"), makeNode("n1", "a", func(n *corev1.Node) {
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"demo:1"}, SizeBytes: 500 << 20}}
		})}, makePod("p"), "n1"},
		{"room that others use counts", []placement.Object{makeNode("n0", "a"), makeNode("n1", "a")}, makePod("p", request("3", "1Gi")), "n1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := viewOf(test.objects...)
			v.SetUsage(placement.NodeUsage{Node: "n0", Granted: placement.Resources{MilliCPU: 100, Pods: 1}})
			if test.name == "room that others use counts" {
				v.SetUsage(placement.NodeUsage{Node: "n0", Granted: placement.Resources{MilliCPU: 2000, Memory: 1 << 30, Pods: 3}})
			}
			d := one(t, v, test.pod)
			if d.Node != test.want {
				t.Errorf("placed on %q, want %q: %+v\n%+v", d.Node, test.want, d.Unschedulable, Explain(v, test.pod, now))
			}
		})
	}
}

// TestQueue checks who is decided, and in which order.
func TestQueue(t *testing.T) {
	room := makeNode("n0", "a", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("2") })
	v := viewOf(room)
	at := func(seconds int, priority int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.NewTime(now.Add(time.Duration(seconds) * time.Second))
			p.Spec.Priority = &priority
		}
	}
	pods := []*corev1.Pod{
		makePod("late", at(9, 0)),
		makePod("early", at(1, 0)),
		makePod("important", at(10, 100)),
		makePod("gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}} }),
		makePod("foreign", func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }),
		makePod("placed", onNode("n0")),
		makePod("done", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
	}
	var got []string
	for _, d := range Schedule(v, pods, now) {
		got = append(got, d.Pod.Name+"→"+d.Node)
	}
	if want := "[important→n0 early→n0 late→]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSpreadsByDefault checks that pods of one ReplicaSet go to different nodes and zones.
func TestSpreadsByDefault(t *testing.T) {
	var objects []placement.Object
	for i := range 6 {
		objects = append(objects, makeNode(fmt.Sprintf("n%d", i), string(rune('a'+i%3))))
	}
	v := viewOf(objects...)
	var pods []*corev1.Pod
	for i := range 6 {
		pods = append(pods, makePod(fmt.Sprintf("p%d", i), func(p *corev1.Pod) {
			p.Labels["pod-template-hash"] = "abc"
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-abc", UID: "rs", Controller: ptr.To(true)}}
		}))
	}
	used := map[string]int{}
	for i, d := range Schedule(v, pods, now) {
		used[d.Node]++
		if used[d.Node] > 1 {
			t.Errorf("pod %d is the second on %s", i, d.Node)
		}
	}
}
