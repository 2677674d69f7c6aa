package turn

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestOnlyConfirmedLossesEvict: what the leader has heard of a node may be old, so the caller's reading decides.
func TestOnlyConfirmedLossesEvict(t *testing.T) {
	gone, bound := node("a", "4"), pod("p", "1")
	gone.Status.Conditions[0].Status = corev1.ConditionUnknown
	gone.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}}
	bound.Spec.NodeName = "a"
	l := newLeader(node("b", "4"), gone, bound)
	at := now
	var work []Piece
	for ; len(l.Accused(work)) == 0; at = at.Add(time.Second) {
		if at.Sub(now) > time.Minute {
			t.Fatal("nobody is evicted")
		}
		work = l.Begin(at).Urgent()
	}
	if accused := l.Accused(work); !slices.Equal(accused, []string{"a"}) {
		t.Fatalf("accused: %v", accused)
	}
	if kept := l.Confirmed(slices.Clone(work), map[string]bool{"a": true}, []*corev1.Node{node("b", "4")}, at); len(kept) != len(work) {
		t.Errorf("of %d plans %d are left although the node is lost", len(work), len(kept))
	}
	for _, piece := range l.Confirmed(slices.Clone(work), nil, nil, at) {
		if piece.Ref == EvictionRef {
			t.Error("an eviction is left although the node is back")
		}
	}
	mate := gone.DeepCopy()
	mate.Name = "b"
	for _, piece := range l.Confirmed(slices.Clone(work), map[string]bool{"a": true}, []*corev1.Node{mate}, at) {
		if piece.Ref == EvictionRef {
			t.Error("an eviction is left although another node of the zone is lost by now")
		}
	}
	if next := l.Next(); next.IsZero() || next.After(at.Add(RetryPlan)) {
		t.Errorf("the eviction is decided again at %s only", next)
	}
	if again := l.Begin(at.Add(RetryPlan)).Urgent(); len(l.Accused(again)) != 1 {
		t.Error("the eviction is not decided again")
	}
}
