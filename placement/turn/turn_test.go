package turn

import (
	"fmt"
	"slices"
	"strings"
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

// TestANodeThatNeverAnswersKeepsNoPodsWaiting: of a node whose peer lives but does not answer claims, one of another version for instance.
func TestANodeThatNeverAnswersKeepsNoPodsWaiting(t *testing.T) {
	l := newLeader(node("a", "4"), node("b", "1"), pod("p", "500m"))
	at := now
	for n := range maxSilences {
		turn := l.Begin(at)
		if len(turn.Claims()["a"]) != 1 {
			t.Fatalf("after %d silences: claims %v, want one on the emptier node", n, turn.Claims())
		}
		l.Silent(turn, "a", at)
		if bound := bindings(l.Finish(turn, at)); len(bound) > 0 {
			t.Fatalf("bound without an answer: %v", bound)
		}
		at = at.Add(RetryClaim)
	}
	turn := l.Begin(at)
	if len(turn.Claims()["b"]) != 1 {
		t.Fatalf("claims %v, want one on the node that answers", turn.Claims())
	}
	l.Answered(turn, placement.NodeUsage{Node: "b"}, nil, at)
	if bound := bindings(l.Finish(turn, at)); bound["p"] != "b" {
		t.Fatalf("bound %v", bound)
	}
	l.Learn(pod("next", "2"), false) // fits only on the silent one, which is asked again
	const why = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) did not answer claims of room."
	work := l.Finish(l.Begin(at), at)
	if i := slices.IndexFunc(work, func(piece Piece) bool { return piece.Ref.Name == "next" }); i < 0 || !strings.HasPrefix(work[i].Plan.Changes[0].Events[0].Message, why) {
		t.Errorf("of the pod that only the silent node has room for is said: %+v, want %q", work, why)
	}
	at = at.Add(AvoidRefusing)
	if turn = l.Begin(at); len(turn.Claims()["a"]) != 1 {
		t.Fatalf("claims %v after a while", turn.Claims())
	}
	l.Answered(turn, placement.NodeUsage{Node: "a"}, nil, at)
	if bound := bindings(l.Finish(turn, at)); bound["next"] != "a" {
		t.Fatalf("bound %v", bound)
	}
	if n := l.silences["a"]; n != 0 {
		t.Errorf("%d silences after an answer", n)
	}
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

// TestExistingVolumesAreGivenFirst: a pod for whose claim there is a volume already is bound once the two are joined, and not before.
func TestExistingVolumesAreGivenFirst(t *testing.T) {
	disk := func(name, on string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "1"},
			Spec: corev1.PersistentVolumeSpec{
				StorageClassName: "disks", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{on}}},
				}}}},
			},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
		}
	}
	mine, theirs := claim("mine", "disks"), claim("theirs", "disks")
	l := newLeader(node("a", "4"), node("b", "4"), class("disks", "kubernetes.io/no-provisioner"), disk("on-b", "b"), mine, theirs,
		claimed("one", "mine"), claimed("two", "theirs"))
	finish := func(at time.Time) []Piece {
		turn := l.Begin(at)
		for name := range turn.Claims() {
			l.Answered(turn, placement.NodeUsage{Node: name}, nil, at)
		}
		return l.Finish(turn, at)
	}
	work := finish(now)
	var given []*corev1.PersistentVolume
	for _, piece := range work {
		if pv, ok := piece.Plan.Changes[0].Object.(*corev1.PersistentVolume); ok {
			if len(piece.Plan.Changes) != 1 || piece.Plan.Changes[0].ResourceVersion != "1" || piece.Ref.Kind != placement.KindVolume {
				t.Errorf("a volume is given by %+v", piece)
			}
			given = append(given, pv)
		}
	}
	if len(given) != 1 || given[0].Spec.ClaimRef == nil || given[0].Spec.ClaimRef.UID == "" || len(bindings(work)) != 0 {
		t.Fatalf("given %v, bound %v; want the volume given once and nobody bound", given, bindings(work))
	}
	l.Learn(given[0], false)
	if work = finish(now.Add(time.Second)); len(bindings(work)) != 0 {
		t.Errorf("bound %v before claim and volume are joined", bindings(work))
	}
	joined, winner := mine.DeepCopy(), "one"
	if given[0].Spec.ClaimRef.Name == "theirs" {
		joined, winner = theirs.DeepCopy(), "two"
	}
	joined.Spec.VolumeName, joined.Status.Phase = "on-b", corev1.ClaimBound
	joined.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes"}
	l.Learn(joined, false)
	if bound := bindings(finish(now.Add(2 * time.Second))); len(bound) != 1 || bound[winner] != "b" {
		t.Errorf("bound %v, want %s on b", bound, winner)
	}
}

// TestABacklogIsTakenInRounds: each waiting pod is decided about once per round, the important ones first, pods that come meanwhile too, and
// those that fit nowhere keep nobody from having his turn.
func TestABacklogIsTakenInRounds(t *testing.T) {
	large := node("a", "100000")
	large.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("100000")
	l := newLeader(large)
	const hopeless, others = 2*MaxWaiting + 7, MaxWaiting + 9
	for i := range hopeless {
		p := pod(fmt.Sprint("hopeless-", i), "200000")
		p.Spec.Priority = ptr.To[int32](10)
		l.Learn(p, false)
	}
	for i := range others {
		l.Learn(pod(fmt.Sprint("other-", i), "1"), false)
	}
	at, seen := now, map[string]int{}
	for turns := 0; l.Dirty(); turns++ {
		if turns == 1 {
			late := pod("late", "1")
			late.Spec.Priority = ptr.To[int32](20)
			l.Learn(late, false)
		}
		if turns > 20 {
			t.Fatal("the rounds do not end")
		}
		turn := l.Begin(at)
		if len(turn.decisions) > MaxWaiting {
			t.Fatalf("turn %d decides about %d pods", turns, len(turn.decisions))
		}
		for _, d := range turn.decisions {
			seen[d.Pod.Name]++
		}
		if turns == 1 && seen["late"] != 1 {
			t.Error("a pod of high priority that came during a round waits for its end")
		}
		for name := range turn.Claims() {
			l.Answered(turn, placement.NodeUsage{Node: name}, nil, at)
		}
		for name, on := range bindings(l.Finish(turn, at)) {
			p := pod(name, "1")
			p.Spec.NodeName = on
			l.Learn(p, false)
		}
		at = at.Add(time.Millisecond)
	}
	for i := range others {
		if name := fmt.Sprint("other-", i); seen[name] != 1 {
			t.Errorf("%s was decided about %d times, want once", name, seen[name])
		}
	}
	for i := range hopeless { // the late pod was a reason to look once more
		if name := fmt.Sprint("hopeless-", i); seen[name] < 1 || seen[name] > 2 {
			t.Errorf("%s was decided about %d times", name, seen[name])
		}
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
