package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	upstream "k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// makeDaemonSet is one as the API server would have defaulted it.
func makeDaemonSet(edits ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{}
	d.Name, d.Namespace, d.UID = "agent", "default", "daemon-uid"
	d.Spec = appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}}, RevisionHistoryLimit: ptr.To[int32](2),
		UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
			Type:          appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0))},
		},
	}
	d.Spec.Template.Labels = map[string]string{"app": "agent"}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "v1"}}
	for _, edit := range edits {
		edit(d)
	}
	return d
}

// daemons is a world with one DaemonSet named agent.
type daemons struct {
	*world.World
	t fataler
}

func newDaemons(t fataler, set *appsv1.DaemonSet, nodes int) daemons {
	t.Helper()
	w := daemons{world.New(), t}
	for i := range nodes {
		w.node(i, nil)
	}
	w.Put(set)
	return w
}

func (w daemons) node(i int, edit func(*corev1.Node)) {
	n := &corev1.Node{}
	n.Name = fmt.Sprint("n", i)
	n.Labels = map[string]string{"disk": "ssd"}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if edit != nil {
		edit(n)
	}
	w.Put(n)
}

func (w daemons) set() *appsv1.DaemonSet {
	d, _ := w.View.DaemonSets.Get("default", "agent")
	return d
}

func (w *daemons) plan() placement.Plan {
	w.t.Helper()
	plan := Plan(w.View, placement.Ref{Kind: placement.KindDaemonSet, NamespacedName: keyOf(w.set())}, w.Now)
	if err := w.Apply(plan); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.Now = w.Now.Add(time.Millisecond)
	return plan
}

// bind does what the scheduler does with a pod that is for one node.
func (w daemons) bind() {
	for _, p := range w.Pods("default") {
		if p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
			w.Bind(p, targetNode(p))
		}
	}
}

func (w *daemons) settle() {
	w.t.Helper()
	for range 300 {
		changed := len(w.plan().Changes) > 0
		w.bind()
		for _, p := range w.Pods("default") {
			if p.DeletionTimestamp == nil && !placement.Ready(p) && !placement.Finished(p) {
				w.Run(p, true)
				changed = true
			}
			changed = changed || p.DeletionTimestamp != nil
			if placement.Finished(p) {
				changed, w.Now = true, w.Now.Add(daemonRetry)
			}
		}
		w.EndTerminating(nil)
		if !changed {
			return
		}
	}
	w.t.Fatalf("does not settle")
}

// images counts the pods by image.
func (w daemons) images() string {
	n := map[string]int{}
	for _, p := range w.Pods("default") {
		n[p.Spec.Containers[0].Image]++
	}
	return fmt.Sprint(n)
}

func TestDaemonsRunEverywhere(t *testing.T) {
	w := newDaemons(t, makeDaemonSet(), 3)
	w.settle()
	if got := w.images(); got != "map[v1:3]" {
		t.Fatalf("pods %s", got)
	}
	p := w.Pods("default")[0]
	if len(p.Spec.Tolerations) != 6 || p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == "" {
		t.Errorf("tolerations %v, labels %v", p.Spec.Tolerations, p.Labels)
	}
	s := w.set().Status
	if s.DesiredNumberScheduled != 3 || s.CurrentNumberScheduled != 3 || s.NumberReady != 3 || s.NumberAvailable != 3 || s.UpdatedNumberScheduled != 3 || s.NumberUnavailable != 0 {
		t.Errorf("status %+v", s)
	}
	// A new node gets one; a taint that only keeps pods from coming leaves the one that is there; one that drives away does not.
	w.node(3, nil)
	w.node(0, func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	})
	w.node(1, func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
	})
	w.settle()
	var nodes []string
	for _, p := range w.Pods("default") {
		nodes = append(nodes, p.Spec.NodeName)
	}
	slices.Sort(nodes)
	if got := fmt.Sprint(nodes); got != "[n0 n2 n3]" {
		t.Errorf("pods on %s", got)
	}
	if s := w.set().Status; s.DesiredNumberScheduled != 2 || s.NumberMisscheduled != 1 {
		t.Errorf("status %+v", s)
	}
}

// TestDaemonsCountWhenTheyHaveBeenReadyForAWhile: minReadySeconds parts ready from available.
func TestDaemonsCountWhenTheyHaveBeenReadyForAWhile(t *testing.T) {
	w := newDaemons(t, makeDaemonSet(func(d *appsv1.DaemonSet) { d.Spec.MinReadySeconds = 3600 }), 2)
	w.settle()
	if s := w.set().Status; s.NumberReady != 2 || s.NumberAvailable != 0 || s.NumberUnavailable != 2 {
		t.Errorf("status %+v", s)
	}
	if plan := w.plan(); plan.Recheck.IsZero() {
		t.Error("nobody asks again when the time is over")
	}
	w.Now = w.Now.Add(2 * time.Hour)
	w.settle()
	if s := w.set().Status; s.NumberAvailable != 2 || s.NumberUnavailable != 0 || s.ObservedGeneration != w.set().Generation {
		t.Errorf("later: status %+v", s)
	}
}

// TestARefusedDaemonIsShown: a DaemonSet says in a condition why a pod is missing, for as long as it is.
func TestARefusedDaemonIsShown(t *testing.T) {
	w := newDaemons(t, makeDaemonSet(), 1)
	w.View.Refuse("daemon-uid", 1, "exceeded quota", w.Now)
	w.plan()
	if c := w.set().Status.Conditions; len(c) != 1 || c[0].Type != replicaFailure || c[0].Reason != failedCreate || c[0].Message != "exceeded quota" {
		t.Fatalf("conditions %+v", c)
	}
	w.View.Accept("daemon-uid", 1)
	w.Now = w.Now.Add(time.Minute)
	w.settle()
	if c := w.set().Status.Conditions; len(c) != 0 || w.images() != "map[v1:1]" {
		t.Errorf("afterwards: %+v, pods %s", c, w.images())
	}
}

// TestDaemonHashCollision: somebody else's revision has the name that the set's would have.
func TestDaemonHashCollision(t *testing.T) {
	first := newDaemons(t, makeDaemonSet(), 1)
	first.settle()
	foreign := first.View.Revisions.In("default")[0].DeepCopy()
	foreign.OwnerReferences, foreign.Data.Raw, foreign.UID = nil, []byte(`{"spec":{}}`), "foreign"
	foreign.Labels = nil
	w := newDaemons(t, makeDaemonSet(), 1)
	w.Put(foreign)
	w.settle()
	if got := ptr.Deref(w.set().Status.CollisionCount, 0); got != 1 || w.images() != "map[v1:1]" {
		t.Errorf("collision count %d, pods %s", got, w.images())
	}
}

func TestDaemonHistoryAndUndo(t *testing.T) {
	w := newDaemons(t, makeDaemonSet(), 2)
	for i := range 6 {
		d := w.set().DeepCopy()
		d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", i)
		w.Put(d)
		w.settle()
	}
	if n := w.View.Revisions.Len(); n != 3 {
		t.Errorf("%d revisions", n)
	}
	d := w.set().DeepCopy()
	d.Spec.Template.Spec.Containers[0].Image = "v4"
	w.Put(d)
	w.settle()
	if got := w.images(); got != "map[v4:2]" || w.View.Revisions.Len() != 3 {
		t.Errorf("%s, %d revisions", got, w.View.Revisions.Len())
	}
}

// TestFailedDaemonIsReplacedAfterAWhile: a node that refuses its pod does not keep everybody busy.
func TestFailedDaemonIsReplacedAfterAWhile(t *testing.T) {
	w := newDaemons(t, makeDaemonSet(), 1)
	w.settle()
	w.Now = w.Now.Add(time.Hour)
	w.EditPod(w.Pods("default")[0], func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodFailed
		world.SetReady(p, false, w.Now)
	})
	failed := w.Now
	w.plan()
	plan := w.plan()
	if len(plan.Changes) != 0 || !plan.Recheck.Equal(failed.Add(daemonRetry)) {
		t.Fatalf("%d changes, asks again at %s", len(plan.Changes), plan.Recheck)
	}
	w.settle()
	if p := w.Pods("default")[0]; !placement.Ready(p) {
		t.Error("not replaced")
	}
}

// TestFitsIsUpstreams compares on which nodes a pod should be, and may stay.
func TestFitsIsUpstreams(t *testing.T) {
	effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}
	keys := []string{"a", corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable, corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeDiskPressure}
	rapid.Check(t, func(t *rapid.T) {
		set := makeDaemonSet()
		spec := &set.Spec.Template.Spec
		spec.NodeName = rapid.SampledFrom([]string{"", "", "", "n1", "n2"}).Draw(t, "node name")
		spec.HostNetwork = rapid.Bool().Draw(t, "host network")
		if rapid.Bool().Draw(t, "selector") {
			spec.NodeSelector = map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}
		}
		for range rapid.IntRange(0, 2).Draw(t, "tolerations") {
			spec.Tolerations = append(spec.Tolerations, corev1.Toleration{
				Key: rapid.SampledFrom(keys).Draw(t, "key"), Operator: corev1.TolerationOpExists, Effect: rapid.SampledFrom(append(effects, "")).Draw(t, "effect"),
			})
		}
		if rapid.Bool().Draw(t, "affinity") {
			spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
					Key: "metadata.name", Operator: rapid.SampledFrom([]corev1.NodeSelectorOperator{corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn}).Draw(t, "operator"), Values: []string{"n1"},
				}}}},
			}}}
		}
		node := &corev1.Node{}
		node.Name, node.Labels = "n1", map[string]string{"disk": "ssd"}
		for range rapid.IntRange(0, 2).Draw(t, "taints") {
			node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: rapid.SampledFrom(keys).Draw(t, "taint"), Effect: rapid.SampledFrom(effects).Draw(t, "taint effect")})
		}
		w := newDaemons(t, set, 0)
		w.Put(node)
		wantRun, wantStay := upstream.NodeShouldRunDaemonPod(logr.Discard(), node, set)
		plan := w.plan()
		run := slices.ContainsFunc(plan.Changes, func(c placement.Change) bool { _, ok := c.Object.(*corev1.Pod); return ok })
		if run != wantRun {
			t.Fatalf("runs %v, upstream's %v", run, wantRun)
		}
		// One that is there already stays or goes.
		w2 := newDaemons(t, makeDaemonSet(), 0)
		w2.node(1, nil)
		w2.settle()
		set.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
		w2.Put(set)
		w2.Put(node)
		w2.plan()
		if stays := w2.Pods("default")[0].DeletionTimestamp == nil; stays != wantStay {
			t.Fatalf("stays %v, upstream's %v", stays, wantStay)
		}
	})
}

// TestDaemonRolloutKeepsItsBounds: whatever happens to pods and nodes, a rollout takes no more than maxUnavailable, there is never more
// than one pod per node, two while it surges, and in the end all are of the new template.
func TestDaemonRolloutKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		surge, unavailable := 0, rapid.IntRange(1, 3).Draw(t, "maxUnavailable")
		if rapid.Bool().Draw(t, "surges") {
			surge, unavailable = unavailable, 0
		}
		set := makeDaemonSet(func(d *appsv1.DaemonSet) {
			d.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt(unavailable)), MaxSurge: ptr.To(intstr.FromInt(surge))}
		})
		nodes := rapid.IntRange(1, 6).Draw(t, "nodes")
		w := newDaemons(t, set, nodes)
		w.settle()
		d := w.set().DeepCopy()
		d.Spec.Template.Spec.Containers[0].Image = "v2"
		w.Put(d)
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			pods := w.Pods("default")
			if len(pods) > 0 {
				p := pods[rapid.IntRange(0, len(pods)-1).Draw(t, "pod")]
				switch rapid.IntRange(0, 4).Draw(t, "event") {
				case 0:
					w.EndTerminating(nil)
				case 1:
					if p.Spec.NodeName != "" && p.DeletionTimestamp == nil {
						w.Run(p, false)
					}
				default:
					w.bind()
					if p.DeletionTimestamp == nil {
						w.Run(p, true)
					}
				}
			}
			before, doubledBefore := availableDaemons(w), doubled(t, w, surge)
			w.plan()
			after := availableDaemons(w)
			if taken := before - after; taken > max(unavailable-(nodes-before), 0) {
				t.Fatalf("%d of %d available pods taken, with %d nodes and maxUnavailable %d", taken, before, nodes, unavailable)
			}
			if extra := doubled(t, w, surge); extra-doubledBefore > max(surge-doubledBefore, 0)+nodes-before {
				t.Fatalf("%d extra pods after %d, maxSurge is %d and %d nodes had no available one", extra, doubledBefore, surge, nodes-before)
			}
		}
		w.settle()
		s := w.set().Status
		if want := int32(nodes); s.UpdatedNumberScheduled != want || s.NumberAvailable != want || s.CurrentNumberScheduled != want || w.images() != fmt.Sprintf("map[v2:%d]", nodes) {
			t.Fatalf("in the end %+v, %s", s, w.images())
		}
		if plan := w.plan(); len(plan.Changes) > 0 {
			t.Fatalf("a plan after the last one changes something")
		}
	})
}

// doubled counts the pods beyond one per node, of which there may be one while the set surges.
func doubled(t *rapid.T, w daemons, surge int) int {
	perNode, extra := map[string]int{}, 0
	for _, p := range w.Pods("default") {
		if p.DeletionTimestamp == nil {
			perNode[targetNode(p)]++
		}
	}
	for name, n := range perNode {
		if n > 2 || n > 1 && surge == 0 {
			t.Fatalf("%d pods on %s", n, name)
		}
		extra += n - 1
	}
	return extra
}

// availableDaemons counts the nodes that have an available pod.
func availableDaemons(w daemons) int {
	nodes := map[string]bool{}
	for _, p := range w.Pods("default") {
		if p.DeletionTimestamp == nil && placement.Ready(p) {
			nodes[p.Spec.NodeName] = true
		}
	}
	return len(nodes)
}
