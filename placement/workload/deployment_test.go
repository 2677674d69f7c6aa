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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement/internal/world"
)

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func newCluster(t testing.TB, d *appsv1.Deployment) cluster {
	t.Helper()
	c := cluster{world.New(), t}
	c.Put(d)
	return c
}

func one(image string) *appsv1.Deployment {
	return makeDeployment(3, image, intstr.FromInt32(1), intstr.FromInt32(1))
}

func (c cluster) condition(kind appsv1.DeploymentConditionType) string {
	found := conditionOf(&c.deployment().Status, kind)
	if found == nil {
		return ""
	}
	return fmt.Sprintf("%s %s", found.Status, found.Reason)
}

// TestOnePassMakesEverything: a new Deployment's ReplicaSet, pods and status come from one plan.
func TestOnePassMakesEverything(t *testing.T) {
	c := newCluster(t, one("v1"))
	plan := PlanDeployment(c.View, c.deployment(), c.Now)
	var verbs []string
	for _, change := range plan.Changes {
		verbs = append(verbs, fmt.Sprintf("%s %T", change.Verb, change.Object))
	}
	want := "create *v1.ReplicaSet, create *v1.Pod, create *v1.Pod, create *v1.Pod, update-status *v1.Deployment"
	if got := strings.Join(verbs, ", "); got != want {
		t.Fatalf("got %s", got)
	}
	rs := plan.Changes[0].Object.(*appsv1.ReplicaSet)
	for _, change := range plan.Changes[1:4] {
		ref := metav1.GetControllerOf(change.Object)
		if ref == nil || ref.UID != rs.UID || ref.Name != rs.Name || ref.Kind != "ReplicaSet" || ref.APIVersion != "apps/v1" {
			t.Errorf("owner %+v", ref)
		}
		if !strings.HasPrefix(change.Object.GetName(), rs.Name+"-") {
			t.Errorf("name %s", change.Object.GetName())
		}
	}
	if again := PlanDeployment(c.View, c.deployment(), c.Now); again.Changes[1].Object.GetName() != plan.Changes[1].Object.GetName() {
		t.Error("planning is not repeatable")
	}
}

// TestStuckRolloutKeepsOldPods: 10 replicas, surge 3, 2 unavailable, and a template that never gets
// ready stand at 8 old and 5 new pods. An old pod that is unready for a moment must not be deleted.
func TestStuckRolloutKeepsOldPods(t *testing.T) {
	c := newCluster(t, makeDeployment(10, "v1", intstr.FromInt32(3), intstr.FromInt32(2)))
	c.settle()
	c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "broken" })
	for c.plan() {
		c.EndTerminating(nil)
	}
	images := func() map[string]int {
		n := map[string]int{}
		for _, p := range c.Pods("default") {
			n[p.Spec.Containers[0].Image]++
		}
		return n
	}
	if got := fmt.Sprint(images()); got != "map[broken:5 v1:8]" {
		t.Fatalf("stuck at %s", got)
	}
	for _, p := range c.Pods("default") {
		if p.Spec.Containers[0].Image == "v1" {
			c.Run(p, false)
			break
		}
	}
	c.plan()
	c.EndTerminating(nil)
	if got := fmt.Sprint(images()); got != "map[broken:5 v1:8]" {
		t.Errorf("then at %s", got)
	}
}

func TestRevisionsAndUndo(t *testing.T) {
	c := newCluster(t, one("v1"))
	c.settle()
	c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	c.settle()
	if got := c.deployment().Annotations[revisionAnnotation]; got != "2" {
		t.Fatalf("revision %s after a change", got)
	}
	// kubectl rollout undo copies the old set's template into the Deployment.
	c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v1" })
	c.settle()
	c.checkComplete(3)
	if got := c.deployment().Annotations[revisionAnnotation]; got != "3" {
		t.Errorf("revision %s after undo", got)
	}
	sets := c.View.ReplicaSets.In("default")
	if len(sets) != 2 {
		t.Fatalf("%d sets", len(sets))
	}
	i := slices.IndexFunc(sets, func(rs *appsv1.ReplicaSet) bool { return *rs.Spec.Replicas == 3 })
	if got := sets[i].Annotations[revisionHistoryAnnotation]; got != "1" {
		t.Errorf("history %q", got)
	}
}

func TestHistoryLimit(t *testing.T) {
	d := one("v0")
	d.Spec.RevisionHistoryLimit = ptr.To[int32](2)
	c := newCluster(t, d)
	for i := range 6 {
		c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = fmt.Sprintf("v%d", i) })
		c.settle()
	}
	var revisions []string
	for _, rs := range c.View.ReplicaSets.In("default") {
		revisions = append(revisions, rs.Annotations[revisionAnnotation])
	}
	slices.Sort(revisions)
	if got := fmt.Sprint(revisions); got != "[4 5 6]" {
		t.Errorf("revisions left: %s", got)
	}
}

func TestRecreate(t *testing.T) {
	d := one("v1")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	c := newCluster(t, d)
	c.settle()
	c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	for range 3 {
		c.plan()
		for _, p := range c.Pods("default") {
			if p.Spec.Containers[0].Image == "v2" {
				t.Fatal("a new pod was made while old ones terminate")
			}
		}
	}
	c.settle()
	c.checkComplete(3)
}

func TestDeadline(t *testing.T) {
	c := newCluster(t, one("v1"))
	c.plan()
	if got := c.condition(appsv1.DeploymentProgressing); got != "True NewReplicaSetCreated" {
		t.Errorf("at first: %s", got)
	}
	if got := c.condition(appsv1.DeploymentAvailable); got != "False MinimumReplicasUnavailable" {
		t.Errorf("available at first: %s", got)
	}
	plan := PlanDeployment(c.View, c.deployment(), c.Now)
	if want := c.Now.Add(601 * time.Second); !plan.Recheck.Equal(want) {
		t.Errorf("recheck at %s, want %s", plan.Recheck, want)
	}
	c.Now = c.Now.Add(602 * time.Second)
	c.plan()
	if got := c.condition(appsv1.DeploymentProgressing); got != "False ProgressDeadlineExceeded" {
		t.Errorf("after the deadline: %s", got)
	}
	c.settle()
	if got := c.condition(appsv1.DeploymentProgressing); got != "True NewReplicaSetAvailable" {
		t.Errorf("in the end: %s", got)
	}
}

func TestPause(t *testing.T) {
	c := newCluster(t, one("v1"))
	c.settle()
	c.edit(func(d *appsv1.Deployment) {
		d.Spec.Paused = true
		d.Spec.Template.Spec.Containers[0].Image = "v2"
	})
	c.settle()
	if n := c.View.ReplicaSets.Len(); n != 1 {
		t.Errorf("%d sets while paused", n)
	}
	if got := c.condition(appsv1.DeploymentProgressing); got != "Unknown DeploymentPaused" {
		t.Errorf("paused: %s", got)
	}
	c.edit(func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](5) })
	c.settle()
	if active, _ := c.counts(); active != 5 {
		t.Errorf("%d pods after scaling while paused", active)
	}
	c.edit(func(d *appsv1.Deployment) { d.Spec.Paused = false })
	c.settle()
	c.checkComplete(5)
}

func TestAdoptionAndRelease(t *testing.T) {
	c := newCluster(t, one("v1"))
	c.settle()
	pod := c.Pods("default")[0]
	c.EditPod(pod, func(p *corev1.Pod) { p.Labels["app"] = "debug" })
	c.settle()
	released, _ := c.View.Pod("default", pod.Name)
	if len(released.Object.OwnerReferences) != 0 {
		t.Errorf("still owned: %+v", released.Object.OwnerReferences)
	}
	if active, _ := c.counts(); active != 4 {
		t.Errorf("%d pods, want three and the released one", active)
	}
	c.EditPod(pod, func(p *corev1.Pod) { p.Labels["app"] = "web" })
	c.settle()
	if active, _ := c.counts(); active != 3 {
		t.Errorf("%d pods after it came back", active)
	}
}

func TestFailureIsShown(t *testing.T) {
	c := newCluster(t, one("v1"))
	const message = "pods \"web\" is forbidden: exceeded quota"
	// As many pods as are planned are refused, until the set is made without any.
	for _, want := range []int{3, 1, 0} {
		plan := PlanDeployment(c.View, c.deployment(), c.Now)
		if got := len(plan.Changes) - 2; got != want {
			t.Fatalf("%d pods planned, want %d", got, want)
		}
		if want > 0 {
			c.View.Refuse(c.deployment().UID, want, message, c.Now)
		}
	}
	c.plan()
	rs := c.View.ReplicaSets.In("default")[0]
	c.View.Refuse(rs.UID, 3, message, c.Now)
	c.plan()
	c.View.Accept(rs.UID, 1)
	c.View.Refuse(rs.UID, 2, message, c.Now)
	c.View.Refuse(rs.UID, 1, message, c.Now)
	if plan := PlanDeployment(c.View, c.deployment(), c.Now); !plan.Recheck.Equal(c.Now.Add(time.Second)) {
		t.Errorf("asks again at %s, want in a second", plan.Recheck)
	}
	c.plan()
	if got := c.condition(appsv1.DeploymentReplicaFailure); got != "True FailedCreate" {
		t.Errorf("failure: %q", got)
	}
	c.Now = c.Now.Add(time.Second)
	c.plan()
	c.View.Accept(rs.UID, 1)
	c.settle()
	c.checkComplete(3)
	if got := c.condition(appsv1.DeploymentReplicaFailure); got != "" {
		t.Errorf("failure stays: %q", got)
	}
}

// TestWaitingPodsAreBounded: pods that find no node are not multiplied for ever, and the set says so.
func TestWaitingPodsAreBounded(t *testing.T) {
	d := one("v1")
	d.Spec.Replicas = ptr.To[int32](1_000_000)
	c := newCluster(t, d)
	for range 5 {
		c.plan()
	}
	if n := len(c.Pods("default")); n != maxWaiting {
		t.Errorf("%d pods wait, want %d", n, maxWaiting)
	}
	if got := c.condition(appsv1.DeploymentReplicaFailure); got != "True FailedCreate" {
		t.Errorf("failure: %q", got)
	}
}

func TestHashCollision(t *testing.T) {
	c := newCluster(t, one("v1"))
	foreign := &appsv1.ReplicaSet{}
	foreign.Name, foreign.Namespace = setName("web", templateHash(&one("v1").Spec.Template, nil)), "default"
	foreign.Spec.Replicas = ptr.To[int32](0)
	foreign.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}
	c.Put(foreign)
	c.settle()
	if got := ptr.Deref(c.deployment().Status.CollisionCount, 0); got != 1 {
		t.Errorf("collision count %d", got)
	}
	c.checkComplete(3)
}

func TestAMillionReplicasAreBoundedWork(t *testing.T) {
	d := one("v1")
	d.Spec.Replicas = ptr.To[int32](1_000_000)
	c := newCluster(t, d)
	if plan := PlanDeployment(c.View, c.deployment(), c.Now); len(plan.Changes) != maxBurst+2 {
		t.Errorf("%d changes in one plan", len(plan.Changes))
	}
	for range 5 {
		if err := c.Apply(PlanDeployment(c.View, c.deployment(), c.Now)); err != nil {
			t.Fatal(err)
		}
	}
	failure := conditionOf(&c.deployment().Status, appsv1.DeploymentReplicaFailure)
	if n := len(c.Pods("default")); n != maxWaiting || failure == nil || !strings.Contains(failure.Message, "1000 pods wait for a node") {
		t.Errorf("%d pods wait, condition %+v", n, failure)
	}
}

func TestEvents(t *testing.T) {
	c := newCluster(t, makeDeployment(1, "v1", intstr.FromInt32(1), intstr.FromInt32(0)))
	c.settle()
	c.edit(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	c.settle()
	var scaling []string
	for _, e := range c.Events {
		if message, ok := strings.CutPrefix(e, "ScalingReplicaSet: "); ok {
			scaling = append(scaling, message)
		}
	}
	oldName := setName("web", templateHash(&one("v1").Spec.Template, nil))
	newName := setName("web", templateHash(&one("v2").Spec.Template, nil))
	want := []string{
		"Scaled up replica set " + oldName + " from 0 to 1",
		"Scaled up replica set " + newName + " from 0 to 1",
		"Scaled down replica set " + oldName + " from 1 to 0",
	}
	if !slices.Equal(scaling, want) {
		t.Errorf("got %q", scaling)
	}
}
