package workload

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// newBudgets makes a world with a Deployment of ten and a budget named guard over it.
func newBudgets(t *testing.T, edit func(*policyv1.PodDisruptionBudget)) cluster {
	t.Helper()
	c := newCluster(t, makeDeployment(10, "v1", intstr.FromInt32(1), intstr.FromInt32(1)))
	b := &policyv1.PodDisruptionBudget{}
	b.Name, b.Namespace = "guard", "default"
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	edit(b)
	c.Put(b)
	c.settle()
	return c
}

func (c cluster) budget() *policyv1.PodDisruptionBudget {
	b, _ := c.View.Budgets.Get("default", "guard")
	return b
}

// guard plans the budget and says what its status is.
func (c cluster) guard() string {
	c.t.Helper()
	plan := Plan(c.View, placement.Ref{Kind: placement.KindBudget, NamespacedName: keyOf(c.budget())}, c.Now)
	if err := c.Apply(plan); err != nil {
		c.t.Fatalf("apply: %v", err)
	}
	s := c.budget().Status
	return fmt.Sprintf("%d of %d healthy, %d wanted, %d may go: %s", s.CurrentHealthy, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed, s.Conditions[0].Reason)
}

func TestBudgets(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*policyv1.PodDisruptionBudget)
		want string
	}{
		{"min", func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = ptr.To(intstr.FromInt32(8)) }, "10 of 10 healthy, 8 wanted, 2 may go: SufficientPods"},
		{"min share", func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = ptr.To(intstr.FromString("75%")) }, "10 of 10 healthy, 8 wanted, 2 may go: SufficientPods"},
		{"max", func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(3)) }, "10 of 10 healthy, 7 wanted, 3 may go: SufficientPods"},
		{"max share", func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = ptr.To(intstr.FromString("25%")) }, "10 of 10 healthy, 7 wanted, 3 may go: SufficientPods"},
		{"none", func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(0)) }, "10 of 10 healthy, 10 wanted, 0 may go: InsufficientPods"},
		{"everybody", func(b *policyv1.PodDisruptionBudget) {
			b.Spec.Selector, b.Spec.MinAvailable = &metav1.LabelSelector{}, ptr.To(intstr.FromInt32(1))
		}, "10 of 10 healthy, 1 wanted, 9 may go: SufficientPods"},
		{"nobody", func(b *policyv1.PodDisruptionBudget) {
			b.Spec.Selector, b.Spec.MinAvailable = nil, ptr.To(intstr.FromInt32(1))
		}, "0 of 0 healthy, 1 wanted, 0 may go: InsufficientPods"},
		{"nonsense", func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = ptr.To(intstr.FromString("x")) }, "0 of 0 healthy, 0 wanted, 0 may go: SyncFailed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := newBudgets(t, test.edit).guard(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestBudgetFollows: pods that get ill, evictions under way, and the size of the Deployment all count at once.
func TestBudgetFollows(t *testing.T) {
	c := newBudgets(t, func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(3)) })
	c.guard()
	c.View.TakeDirty()
	c.Run(c.Pods("default")[0], false)
	dirty := false
	for _, ref := range c.View.TakeDirty() {
		dirty = dirty || ref.Kind == placement.KindBudget
	}
	if !dirty {
		t.Error("a pod's readiness asks for no plan of its budget")
	}
	if got := c.guard(); got != "9 of 10 healthy, 7 wanted, 2 may go: SufficientPods" {
		t.Error(got)
	}
	// The eviction API has granted two, of which one is never carried out.
	b := c.budget().DeepCopy()
	b.Status.DisruptedPods = map[string]metav1.Time{c.Pods("default")[1].Name: metav1.NewTime(c.Now), c.Pods("default")[2].Name: metav1.NewTime(c.Now)}
	c.Put(b)
	if got := c.guard(); got != "7 of 10 healthy, 7 wanted, 0 may go: InsufficientPods" {
		t.Error(got)
	}
	c.DeleteNow(c.Pods("default")[1])
	plan := PlanBudget(c.View, c.budget(), c.Now)
	if want := c.Now.Add(evictionTimeout); !plan.Recheck.Equal(want) {
		t.Errorf("asks again at %s, want %s", plan.Recheck, want)
	}
	c.Now = c.Now.Add(evictionTimeout + time.Second)
	if got := c.guard(); got != "8 of 10 healthy, 7 wanted, 1 may go: SufficientPods" || c.budget().Status.DisruptedPods != nil {
		t.Error(got, c.budget().Status.DisruptedPods)
	}
}

// TestBudgetOverPodsWithoutSize: nobody knows how many there should be of pods that no workload with a size makes.
func TestBudgetOverPodsWithoutSize(t *testing.T) {
	c := newBudgets(t, func(b *policyv1.PodDisruptionBudget) { b.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(3)) })
	c.guard()
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.Labels = "daemon", "default", map[string]string{"app": "web"}
	p.OwnerReferences = []metav1.OwnerReference{{Kind: placement.KindDaemonSet, Name: "d", UID: "d", Controller: ptr.To(true)}}
	c.Put(p)
	if got := c.guard(); got != "10 of 10 healthy, 7 wanted, 0 may go: SyncFailed" {
		t.Error(got)
	}
}
