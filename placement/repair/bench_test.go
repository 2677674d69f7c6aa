package repair

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// BenchmarkIdleNodes is one look at 5,000 nodes of which none needs anything; the meta leader takes five a second.
func BenchmarkIdleNodes(b *testing.B) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	v, renewed := placement.NewView(), map[string]time.Time{}
	for i := range 5000 {
		name := fmt.Sprintf("n%d", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, kind := range unknownKinds {
			status := corev1.ConditionFalse
			if kind == corev1.NodeReady {
				status = corev1.ConditionTrue
			}
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: kind, Status: status})
		}
		v.Upsert(node)
		renewed[name] = now
	}
	b.ReportAllocs()
	var judge Judge
	for b.Loop() {
		if plan := judge.PlanNodes(v, renewed, Defaults(), now); len(plan.Changes) > 0 {
			b.Fatal("nodes that need nothing are changed")
		}
	}
}
