package schedule

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

func priority(p int32) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.Priority = ptr.To(p) }
}

func started(ago time.Duration) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.StartTime = ptr.To(metav1.NewTime(now.Add(-ago))) }
}

func nominatedTo(node string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.NominatedNodeName = node }
}

func names(pods []*corev1.Pod) string {
	var list []string
	for _, p := range pods {
		list = append(list, p.Name)
	}
	return strings.Join(list, " ")
}

// TestPreemption: who is displaced, and who is not.
func TestPreemption(t *testing.T) {
	big := func(name, node string, edits ...func(*corev1.Pod)) *corev1.Pod {
		return makePod(name, append([]func(*corev1.Pod){request("2", "1Gi"), onNode(node)}, edits...)...)
	}
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}}
	budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}
	guarded := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "guarded"} }
	going := func(p *corev1.Pod) {
		p.DeletionTimestamp = ptr.To(metav1.NewTime(now))
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler}}
	}
	n0, n1 := makeNode("n0", "a"), makeNode("n1", "a")
	tests := []struct {
		name                     string
		objects                  []placement.Object
		pod                      *corev1.Pod
		node, victims, displaced string
		withdraw                 bool
		outcome                  string
	}{
		{
			name:    "the youngest of the lowest priority goes",
			objects: []placement.Object{n0, big("old", "n0", started(2*time.Hour)), big("young", "n0", started(time.Hour))},
			pod:     makePod("p", request("2", "1Gi"), priority(5)), node: "n0", victims: "young",
			outcome: "found a potential placement for pod on node n0, preempting 1 victims",
		},
		{
			name:    "lower priority before age",
			objects: []placement.Object{n0, big("low", "n0", priority(1), started(2*time.Hour)), big("high", "n0", priority(3), started(time.Hour))},
			pod:     makePod("p", request("2", "1Gi"), priority(5)), node: "n0", victims: "low",
		},
		{
			name: "a budget is spared if another node can help",
			objects: []placement.Object{n0, n1, budget, big("a", "n0", guarded), big("b", "n0", guarded),
				big("c", "n1", priority(3)), big("d", "n1", priority(3))},
			pod: makePod("p", request("4", "1Gi"), priority(5)), node: "n1", victims: "c d",
		},
		{
			name:    "equal priority is left alone",
			objects: []placement.Object{n0, big("a", "n0", priority(5)), big("b", "n0", priority(5))},
			pod:     makePod("p", request("2", "1Gi"), priority(5)), outcome: "0/1 nodes are available: 1 No preemption victims found for incoming pod.",
		},
		{
			name:    "preemptionPolicy Never",
			objects: []placement.Object{n0, big("a", "n0"), big("b", "n0")},
			pod:     makePod("p", request("2", "1Gi"), priority(5), func(p *corev1.Pod) { p.Spec.PreemptionPolicy = ptr.To(corev1.PreemptNever) }),
			outcome: "not eligible due to preemptionPolicy=Never.",
		},
		{
			name:    "victims on their way are waited for",
			objects: []placement.Object{n0, big("a", "n0", going), big("b", "n0")},
			pod:     makePod("p", request("4", "1Gi"), priority(5), nominatedTo("n0")), outcome: "not eligible due to a terminating pod on the nominated node.",
		},
		{
			name:    "a nomination that leads nowhere is withdrawn",
			objects: []placement.Object{n0, big("a", "n0", priority(5))},
			pod:     makePod("p", request("4", "1Gi"), priority(5), nominatedTo("n0")), withdraw: true,
			outcome: "0/1 nodes are available: 1 No preemption victims found for incoming pod.",
		},
		{
			name: "room kept for others of the same priority stays theirs, that of lower ones does not",
			objects: []placement.Object{n0, n1, makePod("first", request("4", "1Gi"), priority(5), nominatedTo("n0")),
				makePod("lesser", request("4", "1Gi"), priority(2), nominatedTo("n1")), big("a", "n1"), big("b", "n0")},
			pod: makePod("p", request("4", "1Gi"), priority(5)), node: "n1", victims: "a", displaced: "lesser",
		},
		{
			name:    "anti-affinity of a victim",
			objects: []placement.Object{n0, makePod("hermit", onNode("n0"), selfAffinity(corev1.LabelHostname, true))},
			pod:     makePod("p", priority(5)), node: "n0", victims: "hermit",
		},
		{
			name:    "beyond any node",
			objects: []placement.Object{n0, big("a", "n0")},
			pod:     makePod("p", request("5", "1Gi"), priority(5)), outcome: "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := one(t, viewOf(test.objects...), test.pod)
			if d.Node != "" || (d.Preempt == nil) != (test.node == "") || d.Withdraw != test.withdraw {
				t.Fatalf("%+v", d)
			}
			if d.Preempt != nil && (d.Preempt.Node != test.node || names(d.Preempt.Victims) != test.victims || names(d.Preempt.Displaced) != test.displaced) {
				t.Errorf("preempts %s on %s, displaces %q", names(d.Preempt.Victims), d.Preempt.Node, names(d.Preempt.Displaced))
			}
			if test.outcome != "" && !strings.HasSuffix(d.Unschedulable.Message, " preemption: "+test.outcome) {
				t.Errorf("says %q", d.Unschedulable.Message)
			}
		})
	}
}

// TestKeptRoom: a pod goes to the node nominated to it as soon as it fits there, and nobody of its
// priority or less takes the room before.
func TestKeptRoom(t *testing.T) {
	v := viewOf(makeNode("n0", "a"), makeNode("n1", "a"))
	keeper := makePod("keeper", request("4", "1Gi"), priority(5), nominatedTo("n1"))
	v.Upsert(keeper)
	if d := one(t, v, keeper); d.Node != "n1" {
		t.Errorf("the keeper goes to %q", d.Node)
	}
	v.Upsert(makePod("full", request("4", "1Gi"), onNode("n0"), priority(9)))
	if d := one(t, v, makePod("thief", request("1", "1Gi"), priority(5))); d.Node != "" {
		t.Errorf("the thief goes to %q", d.Node)
	}
	if d := one(t, v, makePod("king", request("1", "1Gi"), priority(6))); d.Node != "n1" {
		t.Errorf("the king goes to %q", d.Node)
	}
}

// TestForeignVictims: pods of other shards take room, repel, and can be displaced, after those of
// the own shard.
func TestForeignVictims(t *testing.T) {
	v := viewOf(makeNode("n0", "a"), makePod("own", request("2", "1Gi"), onNode("n0")))
	stranger := makePod("stranger", request("2", "1Gi"), onNode("n0"))
	stranger.Namespace = "elsewhere"
	v.SetUsage(placement.NodeUsage{Node: "n0", Granted: placement.Requests(stranger), Pods: []*corev1.Pod{stranger}})
	if d := one(t, v, makePod("p", request("2", "1Gi"), priority(5))); d.Preempt == nil || names(d.Preempt.Victims) != "own" || d.Preempt.Violations != 0 {
		t.Errorf("%+v", d.Preempt)
	}
	if d := one(t, v, makePod("p", request("4", "1Gi"), priority(5))); d.Preempt == nil || len(d.Preempt.Victims) != 2 || d.Preempt.Violations != 1 {
		t.Errorf("%+v", d.Preempt)
	}
	hermit := makePod("hermit", selfAffinity(corev1.LabelHostname, true))
	hermit.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].NamespaceSelector = &metav1.LabelSelector{}
	v.Delete(makePod("own"))
	if d := one(t, v, hermit); d.Unschedulable == nil || d.Unschedulable.Reasons[reasonPodAnti] != 1 {
		t.Errorf("%+v", d)
	}
}

// TestPreemptionBatch: displacing for many pods in one call gives what displacing for one after
// the other gives, when each finds the nominations of the earlier ones and their victims going.
func TestPreemptionBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var objects []placement.Object
		nodes := rapid.IntRange(1, 5).Draw(t, "nodes")
		for i := range nodes {
			objects = append(objects, genNode(t, fmt.Sprintf("n%d", i)))
		}
		for i := range rapid.IntRange(0, 14).Draw(t, "placed") {
			p := genPod(t, fmt.Sprintf("old-%d", i))
			p.Spec.NodeName = fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "node"))
			priority(rapid.Int32Range(0, 2).Draw(t, "priority"))(p)
			started(time.Duration(i) * time.Minute)(p)
			objects = append(objects, p)
		}
		template := genPod(t, "template")
		priority(rapid.Int32Range(1, 3).Draw(t, "priority"))(template)
		var pods []*corev1.Pod
		for i := range rapid.IntRange(1, 6).Draw(t, "pods") {
			p := template.DeepCopy()
			p.Name = fmt.Sprintf("p%d", i)
			p.UID = types.UID("uid-" + p.Name)
			pods = append(pods, p)
		}
		batch, v := Schedule(viewOf(objects...), pods, now), viewOf(objects...)
		for _, d := range batch {
			single := Schedule(v, []*corev1.Pod{d.Pod}, now)[0]
			if single.Node != d.Node || !reflect.DeepEqual(single.Preempt, d.Preempt) || !reflect.DeepEqual(single.Unschedulable, d.Unschedulable) {
				t.Fatalf("%s: %q %+v %+v in the batch,\n%q %+v %+v alone", d.Pod.Name, d.Node, d.Preempt, d.Unschedulable, single.Node, single.Preempt, single.Unschedulable)
			}
			switch {
			case d.Node != "":
				v.Upsert(bound(d.Pod, d.Node))
			case d.Preempt != nil:
				p := d.Pod.DeepCopy()
				p.Status.NominatedNodeName = d.Preempt.Node
				v.Upsert(p)
				for _, displaced := range d.Preempt.Displaced {
					p := displaced.DeepCopy()
					p.Status.NominatedNodeName = ""
					v.Upsert(p)
				}
			}
		}
	})
}
