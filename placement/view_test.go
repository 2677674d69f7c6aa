package placement

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

func genPod(t *rapid.T) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name = "default", fmt.Sprintf("p%d", rapid.IntRange(0, 8).Draw(t, "pod"))
	p.Labels = map[string]string{"app": rapid.SampledFrom([]string{"web", "db"}).Draw(t, "app")}
	p.Spec.NodeName = rapid.SampledFrom([]string{"", "n0", "n1", "n2"}).Draw(t, "node")
	p.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodFailed}).Draw(t, "phase")
	p.Spec.Containers = []corev1.Container{{
		Ports: []corev1.ContainerPort{{HostPort: rapid.Int32Range(0, 2).Draw(t, "port")}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewMilliQuantity(rapid.Int64Range(0, 1<<62).Draw(t, "cpu"), resource.DecimalSI),
			"example.com/gpu":  *resource.NewQuantity(rapid.Int64Range(0, 3).Draw(t, "gpu"), resource.DecimalSI),
		}},
	}}
	if rapid.Bool().Draw(t, "near") {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
			{TopologyKey: rapid.SampledFrom([]string{"zone", "rack"}).Draw(t, "key")},
		}}}
		p.Status.NominatedNodeName = rapid.SampledFrom([]string{"", "n0"}).Draw(t, "nominated")
	}
	if rapid.Bool().Draw(t, "leaving") {
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	}
	if rapid.Bool().Draw(t, "claims") {
		p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	}
	if rapid.Bool().Draw(t, "owned") {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: KindReplicaSet, Name: "web-1", UID: "rs", Controller: ptr.To(true)}}
	}
	return p
}

func genNode(t *rapid.T) *corev1.Node {
	n := &corev1.Node{}
	n.Name = fmt.Sprintf("n%d", rapid.IntRange(0, 2).Draw(t, "name"))
	n.Labels = map[string]string{corev1.LabelTopologyZone: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")}
	for _, status := range rapid.SliceOfN(rapid.SampledFrom([]corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}), 0, 1).Draw(t, "ready") {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	}
	for _, effect := range rapid.SliceOfN(rapid.SampledFrom([]corev1.TaintEffect{corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule}), 0, 2).Draw(t, "taints") {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "k", Effect: effect})
	}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{rapid.SampledFrom([]string{"a:1", "b:1"}).Draw(t, "image")}, SizeBytes: 1}}
	return n
}

// face is all that decisions read of a view's aggregates, in a comparable form.
func face(v *View) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(v.nodes)) {
		n := v.nodes[name]
		scalars := map[corev1.ResourceName]int64{}
		for k, a := range n.Requested.Scalar {
			if a != 0 {
				scalars[k] = a
			}
		}
		r := n.Requested
		text += fmt.Sprintf("%s known=%v cpu=%d pods=%d %v scored=%d/%d ports=%v images=%v:", name, n.Object != nil, r.MilliCPU, r.Pods, scalars,
			n.ScoredMilliCPU, n.ScoredMemory, n.ports, n.Images)
		for _, p := range n.Pods() {
			text += " " + p.Object.Name
		}
		text += "\n"
	}
	for _, list := range [][]*Pod{v.AllPods(), v.Pending(), v.Ended(), v.Orphans("default"), v.PodsOf("rs"), v.PodsIn("default")} {
		for _, p := range list {
			text += " " + p.Object.Name
		}
		text += ";"
	}
	return text + countedSets(v) + fmt.Sprint(v.imageNodes, len(v.slots), v.claimUsers, len(v.hopeful), len(v.nominated))
}

// countedSets are the label sets and affinity sets in a comparable form.
func countedSets(v *View) string {
	var lines []string
	v.EachPopulated(func(namespace string) {
		v.EachLabelSet(namespace, func(s *LabelSet) {
			s.Each(func(n *Node, staying, leaving int) {
				lines = append(lines, fmt.Sprintln(namespace, s.Labels, n.Name, staying, leaving))
			})
		})
	})
	v.EachAffinitySet(func(s *AffinitySet) {
		s.Each(func(n *Node, pods int) {
			lines = append(lines, fmt.Sprintln(s.Affinity.Required[0].TopologyKey, n.Name, pods))
		})
	})
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// checkTroubled compares what the view keeps of zones and of nodes in trouble with a look at every node.
func checkTroubled(t *rapid.T, v *View) {
	zones, troubled := map[string]int{}, []string{}
	for _, n := range v.Nodes() {
		zones[ZoneOf(n.Object)]++
		taints := slices.ContainsFunc(n.Object.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })
		if taints || n.Ready() != corev1.ConditionTrue {
			troubled = append(troubled, n.Name)
		}
	}
	kept := []string{}
	for _, n := range v.Troubled() {
		kept = append(kept, n.Name)
	}
	if !maps.Equal(zones, v.Zones()) || !slices.Equal(troubled, kept) {
		t.Fatalf("zones %v and troubled %v are kept; there are %v and %v", v.Zones(), kept, zones, troubled)
	}
}

// checkTopology compares the nodes of each zone, as the view keeps them, with a look at every node. Called between changes, it also has the
// view keep them.
func checkTopology(t *rapid.T, v *View) {
	kept := v.Topology(corev1.LabelTopologyZone)
	zones := map[string][]int32{}
	for slot, n := range v.Slots() {
		zone := n.Object.Labels[corev1.LabelTopologyZone]
		zones[zone] = append(zones[zone], int32(slot))
		if !slices.Contains(kept.Members[kept.Domain[slot]], int32(slot)) {
			t.Fatalf("slot %d is not in its own domain %d: %v", slot, kept.Domain[slot], kept.Members)
		}
	}
	for zone, slots := range zones {
		if members := kept.Members[kept.Domain[slots[0]]]; !slices.Equal(members, slots) {
			t.Fatalf("zone %q has the slots %v, kept are %v", zone, slots, members)
		}
	}
	if len(kept.Domain) != len(v.Slots()) || len(kept.Members) != len(zones) {
		t.Fatalf("%d slots and %d zones are kept, there are %d and %d", len(kept.Domain), len(kept.Members), len(v.Slots()), len(zones))
	}
}

// TestIncrementalEqualsRebuilt: after any history the view is the same as one that was built from
// what is left, in another order.
func TestIncrementalEqualsRebuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView()
		pods, nodes, usage := map[string]*corev1.Pod{}, map[string]*corev1.Node{}, map[string]NodeUsage{}
		strangers := map[string]*corev1.Pod{} // by name and version
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				p := genPod(t)
				v.Upsert(p)
				pods[p.Name] = p
			case 2:
				p := genPod(t)
				v.Delete(p)
				delete(pods, p.Name)
			case 3:
				n := genNode(t)
				v.Upsert(n)
				nodes[n.Name] = n
			case 4:
				n := genNode(t)
				v.Delete(n)
				if nodes[n.Name] != nil {
					delete(usage, n.Name)
				}
				delete(nodes, n.Name)
			case 5:
				u := NodeUsage{Node: genNode(t).Name, Granted: Resources{MilliCPU: rapid.Int64Range(0, 5).Draw(t, "granted"), Pods: 1}}
				for range rapid.IntRange(0, 3).Draw(t, "reported pods") {
					stranger := genPod(t)
					stranger.Namespace, stranger.UID, stranger.Spec.NodeName = "elsewhere", types.UID(stranger.Name), u.Node
					stranger.ResourceVersion = rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "version")
					version := stranger.Name + "@" + stranger.ResourceVersion
					if told := strangers[version]; told != nil { // of one version the same is told, wherever it runs
						stranger = told.DeepCopy()
						stranger.Spec.NodeName = u.Node
					} else if stranger.ResourceVersion != "" {
						strangers[version] = stranger
					}
					u.Pods = append(u.Pods, stranger)
				}
				v.SetUsage(u)
				usage[u.Node] = u
			}
			if rapid.Bool().Draw(t, "schedules") {
				checkTopology(t, v)
			}
		}
		fresh := NewView()
		for _, name := range slices.Sorted(maps.Keys(pods)) {
			fresh.Upsert(pods[name])
		}
		for _, name := range slices.Backward(slices.Sorted(maps.Keys(nodes))) {
			fresh.Upsert(nodes[name])
		}
		for _, u := range usage {
			fresh.SetUsage(u)
		}
		checkTroubled(t, v)
		checkTopology(t, v)
		if got, want := face(v), face(fresh); got != want {
			t.Fatalf("grown:\n%s\nrebuilt:\n%s", got, want)
		}
	})
}

// TestDirty: a change names exactly those who must be planned again.
func TestDirty(t *testing.T) {
	v := NewView()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "d"}}
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", UID: "rs"}}
	rs.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	rs.OwnerReferences = []metav1.OwnerReference{{Kind: KindDeployment, Name: "web", UID: "d", Controller: ptr.To(true)}}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "front"}}
	svc.Spec.Selector = map[string]string{"app": "web"}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n0"}}
	for _, o := range []Object{d, rs, svc, node} {
		v.Upsert(o)
	}
	if v.Upsert(&corev1.Secret{}) {
		t.Error("a secret is kept")
	}
	v.TakeDirty()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{"app": "web"}}}
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: KindReplicaSet, Name: "web-1", UID: "rs", Controller: ptr.To(true)}}
	bound := pod.DeepCopy()
	bound.Spec.NodeName = "n0"
	orphan := pod.DeepCopy()
	orphan.Name, orphan.OwnerReferences, orphan.Spec.NodeName = "o", nil, "n0"
	lost := node.DeepCopy()
	lost.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	heartbeat := lost.DeepCopy()
	heartbeat.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"new pod", func() { v.Upsert(pod) }, "[Deployment/default/web Pod/default/p Service/default/front]"},
		{"bound", func() { v.Upsert(bound) }, "[Deployment/default/web Service/default/front]"},
		{"matching pod without owner", func() { v.Upsert(orphan) }, "[Deployment/default/web Service/default/front]"},
		{"lost node", func() { v.Upsert(lost) }, "[Deployment/default/web Node//n0 Service/default/front]"},
		{"heartbeat", func() { v.Upsert(heartbeat) }, "[]"},
		{"pod gone: room", func() { v.Delete(bound) }, "[Deployment/default/web Node//n0 Service/default/front]"},
		{"others take room", func() { v.SetUsage(NodeUsage{Node: "n0", Granted: Resources{MilliCPU: 5, Pods: 1}}) }, "[]"},
		{"others leave room", func() { v.SetUsage(NodeUsage{Node: "n0", Granted: Resources{MilliCPU: 3, Pods: 1}}) }, "[Node//n0]"},
		{"unknown pod gone", func() { v.Delete(bound) }, "[]"},
	}
	for _, step := range steps {
		step.do()
		got := []string{}
		for _, ref := range v.TakeDirty() {
			got = append(got, ref.Kind+"/"+ref.Namespace+"/"+ref.Name)
		}
		if fmt.Sprint(got) != step.want {
			t.Errorf("%s: %v, want %s", step.name, got, step.want)
		}
	}
}

func TestNamesAreRepeatableAndDistinct(t *testing.T) {
	a, b, c := NewNames("uid", "1"), NewNames("uid", "1"), NewNames("uid1", "")
	seen := map[types.UID]bool{}
	for range 1000 {
		x, y, z := a.UID(), b.UID(), c.UID()
		if x != y || x == z || seen[x] {
			t.Fatalf("%s %s %s", x, y, z)
		}
		seen[x] = true
	}
	if s := NewNames("s").Suffix(); len(s) != 5 || s != NewNames("s").Suffix() {
		t.Errorf("suffix %q", s)
	}
}
