package workload

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// fataler is what helpers need of a test or of a property's case.
type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// makeStatefulSet is one as the API server would have defaulted it, with one claim per pod.
func makeStatefulSet(size int32, edits ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{}
	s.Name, s.Namespace, s.UID = "db", "default", "set-uid"
	s.Spec = appsv1.StatefulSetSpec{
		Replicas: &size, ServiceName: "db", PodManagementPolicy: appsv1.OrderedReadyPodManagement,
		Selector:             &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		RevisionHistoryLimit: ptr.To[int32](2),
		UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
			Type:          appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To[int32](0), MaxUnavailable: ptr.To(intstr.FromInt32(1))},
		},
	}
	s.Spec.Template.Labels = map[string]string{"app": "db"}
	s.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "v1"}}
	claim := corev1.PersistentVolumeClaim{}
	claim.Name, claim.Labels = "data", map[string]string{"kind": "disk"}
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{claim}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

// sets is a world with one StatefulSet named db.
type sets struct {
	*world.World
	t fataler
}

func newSets(t fataler, set *appsv1.StatefulSet) sets {
	t.Helper()
	w := sets{world.New(), t}
	w.Put(set)
	return w
}

func (w sets) set() *appsv1.StatefulSet {
	s, _ := w.View.StatefulSets.Get("default", "db")
	return s
}

func (w sets) edit(change func(*appsv1.StatefulSet)) {
	s := w.set().DeepCopy()
	change(s)
	w.Put(s)
}

func (w sets) plan() bool {
	w.t.Helper()
	plan := Plan(w.View, placement.Ref{Kind: placement.KindStatefulSet, NamespacedName: keyOf(w.set())}, w.Now)
	if err := w.Apply(plan); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	w.Now = w.Now.Add(time.Millisecond) // no two plans are made at one time
	return len(plan.Changes) > 0
}

// rest plans until nothing changes any more.
func (w sets) rest() {
	w.t.Helper()
	for range 100 {
		if !w.plan() {
			return
		}
	}
	w.t.Fatalf("100 plans and still no rest")
}

// start makes the pod run, on a node.
func (w sets) start(name string, ready bool) {
	if p, ok := w.View.Pod("default", name); ok && p.Object.DeletionTimestamp == nil {
		w.Bind(p.Object, "n1")
		w.Run(p.Object, ready)
	}
}

// settle plans, starts and ends pods until nothing happens.
func (w sets) settle() {
	w.t.Helper()
	for range 500 {
		changed := w.plan()
		for _, p := range w.Pods("default") {
			if p.DeletionTimestamp == nil && !placement.Ready(p) {
				w.start(p.Name, true)
				changed = true
			}
			changed = changed || p.DeletionTimestamp != nil
		}
		w.EndTerminating(nil)
		if !changed {
			return
		}
	}
	w.t.Fatalf("does not settle")
}

// state is the pods with their image and condition, in one line.
func (w sets) state() string {
	var list []string
	for _, p := range w.Pods("default") {
		text := p.Name + ":" + p.Spec.Containers[0].Image
		switch {
		case p.DeletionTimestamp != nil:
			text += "-"
		case placement.Ready(p):
			text += "+"
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func (w sets) expect(want string) {
	w.t.Helper()
	if got := w.state(); got != want {
		w.t.Fatalf("pods %q, want %q", got, want)
	}
}

func TestStatefulPodsStartInOrder(t *testing.T) {
	w := newSets(t, makeStatefulSet(3))
	w.rest()
	w.expect("db-0:v1")
	w.start("db-0", false)
	w.rest()
	w.expect("db-0:v1")
	w.start("db-0", true)
	w.rest()
	w.expect("db-0:v1+ db-1:v1")
	w.start("db-1", true)
	w.rest()
	w.start("db-2", true)
	w.rest()
	w.expect("db-0:v1+ db-1:v1+ db-2:v1+")
	pod, _ := w.View.Pod("default", "db-1")
	for label, want := range map[string]string{
		appsv1.StatefulSetPodNameLabel: "db-1", appsv1.PodIndexLabel: "1", appsv1.StatefulSetRevisionLabel: w.set().Status.UpdateRevision,
	} {
		if got := pod.Object.Labels[label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	if pod.Object.Spec.Hostname != "db-1" || pod.Object.Spec.Subdomain != "db" {
		t.Errorf("host %s.%s", pod.Object.Spec.Hostname, pod.Object.Spec.Subdomain)
	}
	if v := pod.Object.Spec.Volumes; len(v) != 1 || v[0].PersistentVolumeClaim.ClaimName != "data-db-1" {
		t.Errorf("volumes %+v", v)
	}
	claim, ok := w.View.Claims.Get("default", "data-db-1")
	if !ok || claim.Labels["app"] != "db" || claim.Labels["kind"] != "disk" {
		t.Errorf("claim %+v", claim)
	}
	if s := w.set().Status; s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 {
		t.Errorf("status %+v", s)
	}
	if want := "SuccessfulCreate: Create Pod db-0 in StatefulSet db successful"; !slices.Contains(w.Events, want) {
		t.Errorf("events %q", w.Events)
	}
}

func TestStatefulRollingUpdate(t *testing.T) {
	w := newSets(t, makeStatefulSet(3))
	w.settle()
	w.edit(func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.Containers[0].Image = "v2"
		s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To[int32](1)
	})
	w.rest()
	w.expect("db-0:v1+ db-1:v1+ db-2:v1-")
	w.settle()
	w.expect("db-0:v1+ db-1:v2+ db-2:v2+")
	st := w.set().Status
	if st.CurrentReplicas != 1 || st.UpdatedReplicas != 2 || st.CurrentRevision == st.UpdateRevision {
		t.Errorf("status %+v", st)
	}
	// Below the partition, even a new pod is of the old revision.
	w.DeleteNow(w.Pods("default")[0])
	w.settle()
	w.expect("db-0:v1+ db-1:v2+ db-2:v2+")
	w.edit(func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To[int32](0) })
	w.settle()
	w.expect("db-0:v2+ db-1:v2+ db-2:v2+")
	if st := w.set().Status; st.CurrentRevision != st.UpdateRevision || st.CurrentReplicas != 3 {
		t.Errorf("status %+v", st)
	}
	w.edit(func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v1" })
	w.settle()
	revisions := w.View.Revisions.In("default")
	if len(revisions) != 2 || w.set().Status.UpdateRevision != slices.MaxFunc(revisions, compareRevisions).Name {
		t.Errorf("after undo %d revisions, the newest is not the update's", len(revisions))
	}
}

func TestStatefulHistoryIsBounded(t *testing.T) {
	w := newSets(t, makeStatefulSet(1))
	for i := range 6 {
		w.edit(func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", i) })
		w.settle()
	}
	if n := w.View.Revisions.Len(); n != 3 { // the live one and two more
		t.Errorf("%d revisions", n)
	}
}

func TestStatefulScaleDownWaits(t *testing.T) {
	w := newSets(t, makeStatefulSet(3, func(s *appsv1.StatefulSet) {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		}
	}))
	w.settle()
	w.edit(func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To[int32](1) })
	w.rest()
	w.expect("db-0:v1+ db-1:v1+ db-2:v1-")
	owner := func(name string) string {
		c, _ := w.View.Claims.Get("default", name)
		ref := metav1.GetControllerOf(c)
		if ref == nil {
			return ""
		}
		return ref.Kind + "/" + ref.Name
	}
	if got := owner("data-db-0") + " " + owner("data-db-2"); got != "StatefulSet/db Pod/db-2" {
		t.Errorf("owners %s", got)
	}
	w.EndTerminating(nil)
	w.rest()
	w.expect("db-0:v1+ db-1:v1-")
	// Scaled up again, the claims that go with the former pods hold the new ones up.
	w.EndTerminating(nil)
	w.edit(func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To[int32](3) })
	w.rest()
	w.expect("db-0:v1+")
	for _, name := range []string{"data-db-1", "data-db-2"} { // the garbage collector
		c, _ := w.View.Claims.Get("default", name)
		w.Remove(c)
	}
	w.settle()
	w.expect("db-0:v1+ db-1:v1+ db-2:v1+")
}

func TestStatefulParallelOrdinals(t *testing.T) {
	w := newSets(t, makeStatefulSet(3, func(s *appsv1.StatefulSet) {
		s.Spec.PodManagementPolicy, s.Spec.Ordinals = appsv1.ParallelPodManagement, &appsv1.StatefulSetOrdinals{Start: 5}
	}))
	w.rest()
	w.expect("db-5:v1 db-6:v1 db-7:v1")
	w.edit(func(s *appsv1.StatefulSet) { s.Spec.Ordinals.Start = 6 })
	w.settle()
	w.expect("db-6:v1+ db-7:v1+ db-8:v1+")
}

func TestStatefulMinReadySecondsWakes(t *testing.T) {
	w := newSets(t, makeStatefulSet(2, func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = 20 }))
	w.rest()
	w.start("db-0", true)
	want := w.Now.Add(20 * time.Second)
	w.rest()
	plan := PlanStatefulSet(w.View, w.set(), w.Now)
	if !plan.Recheck.Equal(want) || len(plan.Changes) != 0 {
		t.Fatalf("recheck at %s, want %s", plan.Recheck, want)
	}
	w.Now = plan.Recheck
	w.rest()
	w.expect("db-0:v1+ db-1:v1")
}

func TestStatefulAdoptionAndRelease(t *testing.T) {
	w := newSets(t, makeStatefulSet(2))
	w.settle()
	w.EditPod(w.Pods("default")[1], func(p *corev1.Pod) { p.Labels["app"] = "debug" })
	w.rest()
	p, _ := w.View.Pod("default", "db-1")
	if len(p.Object.OwnerReferences) != 0 {
		t.Errorf("still owned: %+v", p.Object.OwnerReferences)
	}
	w.EditPod(p.Object, func(p *corev1.Pod) { p.Labels["app"] = "db" })
	w.rest()
	if p, _ := w.View.Pod("default", "db-1"); !metav1.IsControlledBy(p.Object, w.set()) {
		t.Errorf("not adopted: %+v", p.Object.OwnerReferences)
	}
	foreign := &corev1.Pod{}
	foreign.Name, foreign.Namespace, foreign.Labels = "other", "default", map[string]string{"app": "db"}
	w.Put(foreign)
	w.rest()
	if p, _ := w.View.Pod("default", "other"); len(p.Object.OwnerReferences) != 0 {
		t.Error("adopted a pod that has no ordinal")
	}
}

// TestStatefulSetSaysWhatKeepsAPodAway has a stranger's pod and a claim that is going in the way: both are named in events.
func TestStatefulSetSaysWhatKeepsAPodAway(t *testing.T) {
	w := newSets(t, makeStatefulSet(2, func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }))
	stranger := &corev1.Pod{}
	stranger.Name, stranger.Namespace = "db-0", "default"
	w.Put(stranger)
	going := &corev1.PersistentVolumeClaim{}
	going.Name, going.Namespace, going.DeletionTimestamp, going.Finalizers = "data-db-1", "default", ptr.To(metav1.NewTime(w.Now)), []string{"example.com/kept"}
	w.Put(going)
	w.rest()
	for _, want := range []string{
		"FailedCreate: create Pod db-0 in StatefulSet db failed error: there is a pod of that name that does not belong to it",
		"FailedCreate: create Pod db-1 in StatefulSet db failed error: pvc data-db-1 is being deleted",
	} {
		if !slices.Contains(w.Events, want) {
			t.Errorf("no event %q among %q", want, w.Events)
		}
	}
	w.Remove(stranger)
	w.Remove(going)
	w.settle()
	w.expect("db-0:v1+ db-1:v1+")
}

func TestAMillionStatefulReplicas(t *testing.T) {
	w := newSets(t, makeStatefulSet(1_000_000, func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }))
	for range 5 {
		w.plan()
	}
	if n := len(w.Pods("default")); n != maxWaiting {
		t.Errorf("%d pods wait, want %d", n, maxWaiting)
	}
	if c := w.set().Status.Conditions; len(c) != 1 || c[0].Type != replicaFailure || !strings.Contains(c[0].Message, "1000 pods wait for a node") {
		t.Errorf("conditions %+v", c)
	}
	small := w.set().DeepCopy()
	small.Spec.Replicas = ptr.To[int32](1000)
	w.Put(small)
	w.plan()
	if c := w.set().Status.Conditions; len(c) != 0 {
		t.Errorf("with no more than can wait, conditions %+v", c)
	}
}

// TestStatefulSetKeepsItsBounds: whatever happens, ordered pods start after all before them, a rollout
// takes no more than maxUnavailable, and in the end everything is as wanted and stays.
func TestStatefulSetKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parallel := rapid.Bool().Draw(t, "parallel")
		unavailable := rapid.Int32Range(1, 3).Draw(t, "maxUnavailable")
		w := newSets(t, makeStatefulSet(rapid.Int32Range(0, 5).Draw(t, "size"), func(s *appsv1.StatefulSet) {
			if parallel {
				s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
			}
			s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt32(unavailable))
		}))
		w.settle()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			disturb(t, w)
			before := map[string]*corev1.Pod{}
			healthy := 0
			for _, p := range w.Pods("default") {
				before[p.Name] = p
				if p.DeletionTimestamp == nil && placement.Ready(p) && p.Status.Phase == corev1.PodRunning {
					healthy++
				}
			}
			w.plan()
			checkStatefulStep(t, w, before, parallel, int(unavailable), healthy)
		}
		w.settle()
		size := *w.set().Spec.Replicas
		if st := w.set().Status; st.ReadyReplicas != size || st.UpdatedReplicas != size || st.Replicas != size || st.CurrentRevision != st.UpdateRevision {
			t.Fatalf("in the end %+v, want %d everywhere", st, size)
		}
		if w.plan() {
			t.Fatalf("a plan after the last one changes something")
		}
	})
}

// disturb lets one thing happen.
func disturb(t *rapid.T, w sets) {
	pods := w.Pods("default")
	var pod *corev1.Pod
	if len(pods) > 0 {
		pod = pods[rapid.IntRange(0, len(pods)-1).Draw(t, "pod")]
	}
	switch kind := rapid.IntRange(0, 6).Draw(t, "event"); {
	case kind == 0:
		w.edit(func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(rapid.Int32Range(0, 5).Draw(t, "size")) })
	case kind == 1:
		w.edit(func(s *appsv1.StatefulSet) {
			s.Spec.Template.Spec.Containers[0].Image = rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(t, "image")
		})
	case pod == nil:
	case kind == 2:
		w.EndTerminating(nil)
	case kind == 3:
		w.EditPod(pod, func(p *corev1.Pod) {
			if p.Spec.NodeName != "" {
				p.Status.Phase = corev1.PodFailed
			}
		})
	case kind == 4:
		w.DeleteNow(pod)
	default:
		w.start(pod.Name, rapid.IntRange(0, 3).Draw(t, "ready") > 0)
	}
}

func checkStatefulStep(t *rapid.T, w sets, before map[string]*corev1.Pod, parallel bool, maxUnavailable, healthy int) {
	updated := 0
	for _, p := range w.Pods("default") {
		old := before[p.Name]
		ordinal, _ := ordinalOf("db", p.Name)
		if old == nil && !parallel {
			for i := range ordinal {
				if q, ok := before[fmt.Sprint("db-", i)]; !ok || !placement.Ready(q) || q.DeletionTimestamp != nil {
					t.Fatalf("%s is created although db-%d is not ready", p.Name, i)
				}
			}
		}
	}
	for name, old := range before {
		p, there := w.View.Pod("default", name)
		taken := !there || p.Object.DeletionTimestamp != nil
		ordinal, _ := ordinalOf("db", name)
		if taken && old.DeletionTimestamp == nil && placement.Ready(old) && old.Status.Phase == corev1.PodRunning && ordinal < int(*w.set().Spec.Replicas) {
			updated++
		}
	}
	if missing := int(*w.set().Spec.Replicas) - healthy; updated > max(maxUnavailable-max(missing, 0), 0) {
		t.Fatalf("%d healthy pods taken for an update while %d are missing; maxUnavailable is %d", updated, missing, maxUnavailable)
	}
}
