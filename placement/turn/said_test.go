package turn

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
	"shoal/placement/repair"
)

// TestEventsWithoutAChangeAreSaidOnce: a plan that has nothing to write says why, again with every turn, and again only when it is news.
func TestEventsWithoutAChangeAreSaidOnce(t *testing.T) {
	message := ""
	l := New(Options{Repair: repair.Defaults(), Workload: func(v *placement.View, ref placement.Ref, _ time.Time) placement.Plan {
		if message == "" {
			return placement.Plan{}
		}
		budget, _ := v.Budgets.Get(ref.Namespace, ref.Name)
		return placement.Plan{Events: []placement.Event{{Regarding: budget, Type: corev1.EventTypeWarning, Reason: "Why", Message: message}}}
	}})
	for i, step := range []struct {
		message string
		want    int
	}{{"one", 1}, {"one", 0}, {"two", 1}, {"", 0}, {"two", 1}, {"two", 0}} {
		message = step.message
		l.Learn(&policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "b"}}, false)
		turn := l.Begin(now)
		if len(turn.Events) != step.want || len(turn.Urgent()) != 0 {
			t.Errorf("step %d: events %+v, want %d", i, turn.Events, step.want)
		}
	}
}
