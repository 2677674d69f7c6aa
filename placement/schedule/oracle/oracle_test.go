package oracle

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/schedule"
)

func genSets(t *rapid.T) (objects []placement.Object) {
	if chance(t, "replica set", 2) {
		objects = append(objects, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: "set"}, Spec: appsv1.ReplicaSetSpec{Selector: genSelector(t)}})
	}
	if chance(t, "stateful set", 2) {
		objects = append(objects, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: "set"}, Spec: appsv1.StatefulSetSpec{Selector: genSelector(t)}})
	}
	return objects
}

func viewOf(objects []placement.Object) *placement.View {
	v := placement.NewView()
	for _, o := range objects {
		v.Upsert(o)
	}
	return v
}

// dump shows a cluster, one object a line, when a test has failed.
type dump []placement.Object

func (d dump) String() string {
	var text strings.Builder
	for _, o := range d {
		line, err := json.Marshal(o)
		fmt.Fprintf(&text, "%T %s %v\n", o, line, err)
	}
	return text.String()
}

// compare demands that both say the same about a pod.
func compare(t tb, u *upstream, objects []placement.Object, pod *corev1.Pod) {
	t.Helper()
	want := u.judge(t, pod)
	v := viewOf(objects)
	v.Upsert(pod)
	now := start.Add(24 * time.Hour)
	decisions := schedule.Schedule(v, []*corev1.Pod{pod}, now)
	got := schedule.Explain(v, pod, now)
	if len(decisions) != 1 || decisions[0].Node != got.Node {
		t.Fatalf("%d decisions %+v, explained as %s", len(decisions), decisions, got.Node)
	}
	for _, n := range got.Nodes {
		reasons := n.Reasons
		if len(reasons) > 1 && strings.HasPrefix(reasons[1], "taint ") {
			reasons = reasons[:1]
		}
		if !slices.Equal(slices.Sorted(slices.Values(reasons)), slices.Sorted(slices.Values(want.reasons[n.Node]))) {
			t.Fatalf("%s: %q, upstream %q", n.Node, reasons, want.reasons[n.Node])
		}
		if len(reasons) == 0 && want.scores != nil {
			compareScores(t, n, &want)
		}
	}
	if got.Node == "" {
		comparePreemption(t, objects, &got, &want)
		return
	}
	if want.scores == nil {
		return
	}
	if !slices.ContainsFunc(got.Nodes, func(n schedule.NodeExplanation) bool { return n.Node == got.Node && n.Total == got.Nodes[0].Total }) {
		t.Fatalf("%s is chosen, but %s is better", got.Node, got.Nodes[0].Node)
	}
}

func compareScores(t tb, n schedule.NodeExplanation, want *verdict) {
	t.Helper()
	for plugin, score := range want.scores[n.Node] {
		if n.Scores[plugin] != score {
			t.Fatalf("%s: %s scores %d, upstream %d", n.Node, plugin, n.Scores[plugin], score)
		}
	}
	if n.Total != want.totals[n.Node] {
		t.Fatalf("%s: total %d, upstream %d", n.Node, n.Total, want.totals[n.Node])
	}
}

const foundPlace = "preemption: found a potential placement for pod on node "

func comparePreemption(t tb, objects []placement.Object, got *schedule.Explanation, want *verdict) {
	t.Helper()
	ours, _, _ := strings.Cut(got.Message, foundPlace)
	theirs, _, _ := strings.Cut(want.message, foundPlace)
	if ours != theirs {
		t.Fatalf("\n%s, upstream\n%s", got.Message, want.message)
	}
	for _, n := range got.Nodes {
		names := make([]string, 0, len(n.Victims))
		for _, victim := range n.Victims {
			_, name, _ := strings.Cut(victim, "/")
			names = append(names, name)
		}
		slices.Sort(names)
		if !slices.Equal(names, want.victims[n.Node]) || int64(n.Violations) != want.violated[n.Node] {
			t.Fatalf("%s: victims %v (%d budgets violated), upstream %v (%d)", n.Node, names, n.Violations, want.victims[n.Node], want.violated[n.Node])
		}
	}
	if (got.Preempt == nil) != (want.chosen == "") {
		t.Fatalf("preempting %+v, upstream on %q", got.Preempt, want.chosen)
	}
	if got.Preempt == nil || got.Preempt.Node == want.chosen {
		return
	}
	if a, b := cost(objects, want, got.Preempt.Node), cost(objects, want, want.chosen); a != b {
		t.Fatalf("preempting on %s costs %s, upstream on %s %s", got.Preempt.Node, a, want.chosen, b)
	}
}

// cost is all that upstream compares candidates by.
func cost(objects []placement.Object, want *verdict, node string) string {
	highest, sum := int32(-1<<31), int64(0)
	var first time.Time
	for _, o := range objects {
		pod, ok := o.(*corev1.Pod)
		if !ok || !slices.Contains(want.victims[node], pod.Name) {
			continue
		}
		priority := corev1helpers.PodPriority(pod)
		sum += int64(priority) + 1<<31
		switch started := pod.Status.StartTime.Time; {
		case priority > highest:
			highest, first = priority, started
		case priority == highest && started.Before(first):
			first = started
		}
	}
	return fmt.Sprint(want.violated[node], highest, sum, len(want.victims[node]), first)
}

// TestAgreesWithUpstream compares decisions about generated pods in generated clusters.
func TestAgreesWithUpstream(t *testing.T) {
	ctx := silent(t)
	rapid.Check(t, func(t *rapid.T) {
		objects := genCluster(t)
		pod := genPod(t, "new", true)
		t.Logf("%v", dump(append(slices.Clone(objects), pod)))
		u := newUpstream(ctx, t, append(slices.Clone(objects), pod))
		compare(t, u, objects, pod)
	})
}
