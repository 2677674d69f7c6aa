package turn

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/placement"
	"shoal/placement/repair"
	"shoal/placement/schedule"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func node(name, cpu string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourcePods: resource.MustParse("100")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
}

func pod(name, cpu string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), ResourceVersion: "1"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}},
		}}},
	}
}

func newLeader(objects ...placement.Object) *Leader {
	l := New(Options{Repair: repair.Defaults(), NodeProvisioner: "nodes"})
	for _, o := range objects {
		l.Learn(o, false)
	}
	return l
}

// bindings are the nodes that pieces bind pods to.
func bindings(work []Piece) map[string]string {
	bound := map[string]string{}
	for _, piece := range work {
		for _, change := range piece.Plan.Changes {
			if change.Verb == placement.Bind {
				bound[change.Object.GetName()] = change.Object.(*corev1.Pod).Spec.NodeName
			}
		}
	}
	return bound
}

func used(name, cpu string, pods int64) placement.NodeUsage {
	usage := placement.NodeUsage{Node: name}
	usage.Granted.Add(placement.ResourcesOf(corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}))
	usage.Granted.Pods = pods
	return usage
}

func TestARefusingNodeIsAvoidedForAWhile(t *testing.T) {
	l := newLeader(node("a", "4"), node("b", "1"), pod("p", "500m"))
	turn := l.Begin(now)
	if len(turn.Claims()["a"]) != 1 {
		t.Fatalf("claims %v, want one on the emptier node", turn.Claims())
	}
	l.Answered(turn, placement.NodeUsage{Node: "a"}, []types.UID{"p"}, now)
	if work := l.Finish(turn, now); len(bindings(work)) != 0 {
		t.Fatal("a pod was bound without room")
	}
	if next := l.Next(); next.After(now.Add(RetryClaim)) {
		t.Errorf("the refused pod is looked at again only at %s", next)
	}
	later := now.Add(RetryClaim)
	turn = l.Begin(later)
	if len(turn.Claims()["b"]) != 1 || len(turn.Claims()["a"]) != 0 {
		t.Fatalf("claims %v, want the other node", turn.Claims())
	}
	l.Silent(turn, "b", later)
	l.Finish(turn, later)
	if turn = l.Begin(now.Add(AvoidRefusing + RetryClaim)); len(turn.Claims()["a"]) != 1 {
		t.Errorf("claims %v, want the node that had refused", turn.Claims())
	}
}

func TestNodesAreAskedForRoomThatOthersHaveLeft(t *testing.T) {
	l := newLeader(node("a", "1"))
	l.Learn(pod("first", "100m"), false)
	turn := l.Begin(now)
	l.Answered(turn, used("a", "900m", 1), nil, now)
	work := l.Finish(turn, now)
	if bindings(work)["first"] != "a" {
		t.Fatal("the first pod is not bound")
	}
	bound := pod("first", "100m")
	bound.Spec.NodeName = "a"
	l.Learn(bound, false)
	l.Learn(pod("second", "500m"), false)
	turn = l.Begin(now)
	if len(turn.Claims()["a"]) != 0 {
		t.Fatal("a claim for room that is not there")
	}
	l.Finish(turn, now)
	next := l.Next()
	if next.IsZero() || next.After(now.Add(refreshUsage)) {
		t.Fatalf("the next turn is at %s: nobody asks the node again", next)
	}
	turn = l.Begin(now.Add(refreshUsage))
	claims, asked := turn.Claims()["a"]
	if !asked || len(claims) != 0 {
		t.Fatalf("claims %v, want a question without a claim", turn.Claims())
	}
	l.Answered(turn, placement.NodeUsage{Node: "a"}, nil, now.Add(refreshUsage))
	l.Finish(turn, now.Add(refreshUsage))
	turn = l.Begin(now.Add(refreshUsage))
	if len(turn.Claims()["a"]) != 1 {
		t.Error("the room that others have left is not used")
	}
	l.Answered(turn, placement.NodeUsage{Node: "a"}, nil, now.Add(refreshUsage))
	if bindings(l.Finish(turn, now.Add(refreshUsage)))["second"] != "a" {
		t.Error("the waiting pod is not bound")
	}
}

func claimed(name string, claims ...string) *corev1.Pod {
	p := pod(name, "100m")
	for _, claim := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	return p
}

func claim(name, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("claim-" + name), ResourceVersion: "1"},
		Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
}

func class(name, provisioner string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
}

func TestClaimsLearnTheirNodeWithTheBinding(t *testing.T) {
	l := newLeader(node("a", "4"), node("b", "4"), class("nodes", "nodes"), class("far", "elsewhere"),
		claim("mine", "nodes"), claim("far", "far"), claimed("one", "mine"), claimed("two", "mine"), claimed("three", "far"))
	turn := l.Begin(now)
	for name := range turn.Claims() {
		l.Answered(turn, placement.NodeUsage{Node: name}, nil, now)
	}
	work := l.Finish(turn, now)
	chosen := map[string]string{}
	for _, piece := range work {
		for _, change := range piece.Plan.Changes {
			if c, ok := change.Object.(*corev1.PersistentVolumeClaim); ok {
				if have := chosen[c.Name]; have != "" && have != c.Annotations[SelectedNode] {
					t.Errorf("claim %s is to be on %s and on %s", c.Name, have, c.Annotations[SelectedNode])
				}
				chosen[c.Name] = c.Annotations[SelectedNode]
			}
		}
	}
	bound := bindings(work)
	if chosen["mine"] == "" || chosen["far"] == "" {
		t.Fatalf("chosen nodes: %v", chosen)
	}
	for _, name := range []string{"one", "two"} {
		if bound[name] != "" && bound[name] != chosen["mine"] {
			t.Errorf("%s is bound to %s, its volume is made on %s", name, bound[name], chosen["mine"])
		}
	}
	if bound["one"] == "" && bound["two"] == "" {
		t.Error("nobody whose volume the node makes is bound")
	}
	if bound["three"] != "" {
		t.Error("a pod is bound before somebody else has made its volume")
	}
}

func TestPreemption(t *testing.T) {
	low := pod("low", "900m")
	low.Spec.NodeName, low.Spec.Priority = "a", ptr.To[int32](0)
	high := pod("high", "900m")
	high.Spec.Priority = ptr.To[int32](100)
	l := newLeader(node("a", "1"), low, high)
	decision := schedule.Decision{
		Pod: high, Unschedulable: &schedule.Unschedulable{Nodes: 1, Message: "0/1 nodes are available"},
		Preempt: &schedule.Preemption{Node: "a", Victims: []*corev1.Pod{low}},
	}
	work := l.explain(decision, now)
	var deleted, nominated bool
	for _, piece := range work {
		if piece.Ref != podRef(high) {
			t.Errorf("a plan for %v: if it fails nobody looks at the pod that needs the room", piece.Ref)
		}
		for _, change := range piece.Plan.Changes {
			o := change.Object.(*corev1.Pod)
			switch change.Verb {
			case placement.Delete:
				deleted = o.Name == "low" && change.UID == low.UID && change.GracePeriodSeconds == nil &&
					change.Disruption != nil && change.Disruption.Reason == "PreemptionByScheduler"
			case placement.UpdateStatus:
				nominated = o.Name == "high" && o.Status.NominatedNodeName == "a"
			}
		}
	}
	if !deleted || !nominated {
		t.Errorf("victim deleted: %v, pod nominated: %v", deleted, nominated)
	}
	// Once both is on its way, nothing more is written.
	going := low.DeepCopy()
	going.DeletionTimestamp = ptr.To(metav1.NewTime(now))
	waits := high.DeepCopy()
	waits.Status.NominatedNodeName = "a"
	decision.Pod, decision.Preempt.Victims = waits, []*corev1.Pod{going}
	if work := l.explain(decision, now); len(work) != 0 {
		t.Errorf("%d plans for what has been done", len(work))
	}
	// A nomination that leads nowhere is taken back, although the reason is the same.
	decision.Preempt, decision.Withdraw = nil, true
	if work := l.explain(decision, now); len(work) != 1 || work[0].Plan.Changes[0].Object.(*corev1.Pod).Status.NominatedNodeName != "" {
		t.Errorf("the nomination stays: %v", work)
	}
}
