package turn

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/placement"
)

// TestAPlannedObjectRests: what changes in quick succession is planned once at the end of a rest that is as long as the object has pods, and
// the first change after a pause at once.
func TestAPlannedObjectRests(t *testing.T) {
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "web"}}
	service.Spec.Selector = map[string]string{"app": "web"}
	objects := []placement.Object{node("a", "100"), service}
	const pods = 200
	for i := range pods {
		p := pod(fmt.Sprint("web-", i), "1m")
		p.Labels, p.Spec.NodeName = map[string]string{"app": "web"}, "a"
		objects = append(objects, p)
	}
	l := newLeader(objects...)
	planned := func(at time.Time) bool {
		turn := l.Begin(at)
		return slices.ContainsFunc(turn.pieces, func(p Piece) bool { return p.Ref.Kind == placement.KindService })
	}
	touch := func(i int) {
		changed := objects[2+i].(*corev1.Pod).DeepCopy()
		changed.Status.PodIP = fmt.Sprint("10.0.0.", i)
		l.Learn(changed, false)
	}
	const rest = pods * RestPerPod
	touch(1)
	if !planned(now) {
		t.Fatal("the first change is not planned at once")
	}
	touch(2)
	if l.Dirty() || planned(now.Add(rest-1)) {
		t.Error("planned again before the rest is over")
	}
	touch(3)
	if next := l.Next(); !next.Equal(now.Add(rest)) {
		t.Errorf("the leader wants its next turn at %s, not at the end of the rest, %s", next, now.Add(rest))
	}
	if !planned(now.Add(rest)) {
		t.Error("not planned at the end of the rest")
	}
	touch(4)
	if !planned(now.Add(time.Minute)) {
		t.Error("not planned at once after a pause")
	}
	l.Learn(service, true)
	for i := range pods {
		l.Learn(objects[2+i], true)
	}
	if l.Begin(now.Add(time.Hour)); len(l.resting) != 0 {
		t.Errorf("%d objects rest that are gone", len(l.resting))
	}
}
