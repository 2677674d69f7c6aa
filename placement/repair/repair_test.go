package repair

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
	"shoal/placement/internal/world"
)

func makeNode(name, zone string, at time.Time) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(at)}}
	return n
}

// makePod tolerates lost nodes for five seconds, as admission has it by default here.
func makePod(name, node string, edits ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.UID = name, "default", types.UID("uid-"+name)
	p.Spec.NodeName = node
	p.Status.Phase = corev1.PodRunning
	world.SetReady(p, true, world.New().Now)
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5),
		})
	}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func ofStatefulSet(p *corev1.Pod) {
	p.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", UID: "db", Controller: ptr.To(true)}}
}

func forever(p *corev1.Pod) {
	p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
}

// fixture is a world and the leases of its nodes.
type fixture struct {
	*world.World
	renewed map[string]time.Time
	judge   Judge
	losses  *Losses
	options Options
	skew    time.Duration // how far the meta leader's clock is ahead of the shard leader's
	t       interface {
		Helper()
		Fatalf(string, ...any)
	}
}

func newFixture(t interface {
	Helper()
	Fatalf(string, ...any)
}, nodes int, zone func(i int) string) *fixture {
	f := &fixture{World: world.New(), renewed: map[string]time.Time{}, losses: NewLosses(), options: Defaults(), t: t}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		f.Put(makeNode(name, zone(i), f.Now))
		f.renewed[name] = f.Now
	}
	return f
}

// pass lets time go by; nodes renew their leases unless they are silent. It returns what the
// evictions of this moment did, as "delete pod" and "unready pod".
func (f *fixture) pass(d time.Duration, silent ...string) (done []string, brakes []Brake) {
	f.t.Helper()
	f.Now = f.Now.Add(d)
	for name := range f.renewed {
		if !strings.Contains(" "+strings.Join(silent, " ")+" ", " "+name+" ") {
			f.renewed[name] = f.Now
		}
	}
	renewed := map[string]time.Time{}
	for name, at := range f.renewed {
		renewed[name] = at.Add(f.skew)
	}
	plan := f.judge.PlanNodes(f.View, renewed, f.options, f.Now.Add(f.skew))
	if want := new(Judge).PlanNodes(f.View, renewed, f.options, f.Now.Add(f.skew)); !reflect.DeepEqual(plan, want) {
		f.t.Fatalf("with a memory %v is planned, without %v", plan, want)
	}
	if err := f.Apply(plan); err != nil {
		f.t.Fatalf("nodes: %v", err)
	}
	e := PlanEvictions(f.View, f.losses, f.options, f.Now)
	for _, c := range e.Changes {
		word := "unready "
		if c.Verb == placement.Delete {
			word = "delete "
			if c.GracePeriodSeconds != nil {
				word = "force "
			}
		}
		done = append(done, word+c.Object.GetName())
	}
	if err := f.Apply(e.Plan); err != nil {
		f.t.Fatalf("evictions: %v", err)
	}
	return done, e.Brakes
}

func sameZone(int) string { return "a" }

// TestLostNode follows one node's death: noticed, marked, stateless pods replaced after their
// toleration, identity pods after fencing, pods that tolerate it for ever left. Whatever the two
// leaders' clocks say, it takes the same time.
func TestLostNode(t *testing.T) {
	for _, skew := range []time.Duration{0, 2 * time.Second, -time.Minute, 24 * time.Hour, -24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) { lostNode(t, skew) })
	}
}

func lostNode(t *testing.T, skew time.Duration) {
	f := newFixture(t, 4, sameZone)
	f.skew = skew
	f.Put(makePod("web", "n0"))
	f.Put(makePod("db", "n0", ofStatefulSet))
	f.Put(makePod("agent", "n0", forever))
	f.Put(makePod("other", "n1"))
	steps := []struct {
		after time.Duration
		want  string
	}{
		{1900 * time.Millisecond, "[]"},
		{100 * time.Millisecond, "[unready agent unready db unready web]"},
		{4900 * time.Millisecond, "[]"},
		{100 * time.Millisecond, "[force web]"},
		{4900 * time.Millisecond, "[]"},
		{100 * time.Millisecond, "[force db]"},
		{time.Hour, "[]"},
	}
	for i, step := range steps {
		done, _ := f.pass(step.after, "n0")
		if got := fmt.Sprint(done); got != step.want {
			t.Fatalf("step %d: %s, want %s", i, got, step.want)
		}
	}
	n, _ := f.View.Node("n0")
	if !n.Lost() || n.Ready() != corev1.ConditionUnknown || !placement.HasTaint(n.Object, corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule) {
		t.Errorf("node: %+v %+v", n.Object.Spec.Taints, n.Object.Status.Conditions)
	}
	// It comes back: its own report makes it ready, and the taints go.
	back := n.Object.DeepCopy()
	placement.NodeCondition(back, corev1.NodeReady).Status = corev1.ConditionTrue
	f.Put(back)
	f.pass(time.Second)
	if n, _ := f.View.Node("n0"); len(n.Object.Spec.Taints) != 0 {
		t.Errorf("taints stay: %+v", n.Object.Spec.Taints)
	}
}

// TestANewLeader waits anew with what must not run twice, since what it knows of how long the node has been lost is what somebody else's
// clock says. With other pods it believes that, but for a moment in which nodes may come back together with it.
func TestANewLeader(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("web", "n0"))
	f.Put(makePod("db", "n0", ofStatefulSet))
	f.pass(2*time.Second, "n0")
	f.pass(4*time.Second, "n0")
	f.losses = NewLosses()
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, "[]"}, {2900 * time.Millisecond, "[]"}, {100 * time.Millisecond, "[force web]"}, {6900 * time.Millisecond, "[]"}, {100 * time.Millisecond, "[force db]"}} {
		if done, _ := f.pass(step.after, "n0"); fmt.Sprint(done) != step.want {
			t.Errorf("%s later: %v, want %s", step.after, done, step.want)
		}
	}
}

// TestLostTwice: a leader that has missed that a node was well in between counts from its last loss.
func TestLostTwice(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("db", "n0", ofStatefulSet))
	f.pass(2*time.Second, "n0")
	n, _ := f.View.Node("n0")
	again := n.Object.DeepCopy()
	for i := range again.Spec.Taints {
		again.Spec.Taints[i].TimeAdded = &metav1.Time{Time: f.Now.Add(8 * time.Second)}
	}
	f.Put(again)
	if done, _ := f.pass(8*time.Second, "n0"); len(done) != 0 {
		t.Fatalf("%v", done)
	}
	if done, _ := f.pass(9*time.Second, "n0"); len(done) != 0 {
		t.Errorf("given up %v 9 s after it was lost again", done)
	}
	if done, _ := f.pass(time.Second, "n0"); fmt.Sprint(done) != "[force db]" {
		t.Errorf("did %v", done)
	}
}

func TestRecheckTellsWhen(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("web", "n0"))
	if at := new(Judge).PlanNodes(f.View, f.renewed, f.options, f.Now).Recheck; !at.Equal(f.Now.Add(2 * time.Second)) {
		t.Errorf("leases run out at %s", at)
	}
	f.pass(2*time.Second, "n0")
	if at := PlanEvictions(f.View, f.losses, f.options, f.Now).Recheck; !at.Equal(f.Now.Add(5 * time.Second)) {
		t.Errorf("the pod leaves at %s", at)
	}
}

func TestTaintOfAUser(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("web", "n0"))
	f.Put(makePod("patient", "n0", func(p *corev1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "repair", Operator: corev1.TolerationOpExists, TolerationSeconds: ptr.To[int64](60)})
	}))
	n, _ := f.View.Node("n0")
	tainted := n.Object.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "repair", Effect: corev1.TaintEffectNoExecute}}
	f.Put(tainted)
	if done, _ := f.pass(time.Second); fmt.Sprint(done) != "[delete web]" {
		t.Errorf("at once: %v", done)
	}
	if done, _ := f.pass(60 * time.Second); fmt.Sprint(done) != "[delete patient]" {
		t.Errorf("after its toleration: %v", done)
	}
}

func TestDeletedNodeAndLeftovers(t *testing.T) {
	f := newFixture(t, 2, sameZone)
	f.Put(makePod("web", "n0"))
	n, _ := f.View.Node("n0")
	f.Remove(n.Object)
	delete(f.renewed, "n0")
	f.Put(makePod("never", "", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: f.Now} }))
	f.options.MaxTerminated = 1
	for i := range 3 {
		f.Put(makePod(fmt.Sprintf("done-%d", i), "n1", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
			p.CreationTimestamp = metav1.NewTime(f.Now.Add(time.Duration(-i) * time.Hour))
		}))
	}
	if done, _ := f.pass(0); fmt.Sprint(done) != "[force web force never force done-2 force done-1]" {
		t.Errorf("got %v", done)
	}
}

// TestPodOfAJobOnADeletedNode: it is given up with the node, and says why.
func TestPodOfAJobOnADeletedNode(t *testing.T) {
	f := newFixture(t, 2, sameZone)
	f.Put(makePod("work", "n0", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", Name: "work", UID: "work", Controller: ptr.To(true)}}
		p.Finalizers = []string{"batch.kubernetes.io/job-tracking"}
	}))
	node, _ := f.View.Node("n0")
	f.Remove(node.Object)
	f.pass(0)
	p, ok := f.View.Pod("default", "work")
	if !ok || p.Object.DeletionTimestamp == nil || p.Object.Status.Phase != corev1.PodFailed {
		t.Fatalf("there %v, status %+v", ok, p.Object.Status)
	}
	if c := placement.PodCondition(p.Object, corev1.DisruptionTarget); c == nil || c.Reason != "DeletionByPodGC" {
		t.Errorf("conditions %+v", p.Object.Status.Conditions)
	}
}

// TestPodOfAJobSaysThatItWasDisrupted: its Job has to see that it did not fail by itself, and keeps it for that.
func TestPodOfAJobSaysThatItWasDisrupted(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("work", "n0", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", Name: "work", UID: "work", Controller: ptr.To(true)}}
		p.Finalizers = []string{"batch.kubernetes.io/job-tracking"}
	}))
	f.pass(2*time.Second, "n0")
	f.pass(time.Minute, "n0")
	p, ok := f.View.Pod("default", "work")
	if !ok || p.Object.DeletionTimestamp == nil || p.Object.Status.Phase != corev1.PodFailed {
		t.Fatalf("there %v, status %+v", ok, p.Object.Status)
	}
	if c := placement.PodCondition(p.Object, corev1.DisruptionTarget); c == nil || c.Status != corev1.ConditionTrue || c.Reason != "DeletionByTaintManager" {
		t.Errorf("conditions %+v", p.Object.Status.Conditions)
	}
	if done, _ := f.pass(time.Second, "n0"); len(done) != 0 {
		t.Errorf("again: %v", done)
	}
}

func TestStuckDeletionOnALostNode(t *testing.T) {
	f := newFixture(t, 4, sameZone)
	f.Put(makePod("agent", "n0", forever, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: f.Now} }))
	f.pass(2*time.Second, "n0")
	if _, ok := f.View.Pod("default", "agent"); ok {
		t.Error("a deleted pod waits for a node that is gone")
	}
}

// TestBrake: most of a zone lost at once evicts nobody and says so; when enough are back, the
// rest is repaired, after the time of a lease; nodes lost slowly, or two of three, are repaired as usual.
func TestBrake(t *testing.T) {
	f := newFixture(t, 5, sameZone)
	for i := range 5 {
		f.Put(makePod(fmt.Sprintf("web-%d", i), fmt.Sprintf("n%d", i)))
	}
	silent := []string{"n0", "n1", "n2"}
	f.pass(2*time.Second, silent...)
	done, brakes := f.pass(time.Hour, silent...)
	if len(done) != 0 || len(brakes) != 1 || brakes[0].Lost != 3 || brakes[0].Nodes != 5 || brakes[0].Reason == "" {
		t.Fatalf("did %v, brakes %+v", done, brakes)
	}
	n, _ := f.View.Node("n2")
	back := n.Object.DeepCopy()
	placement.NodeCondition(back, corev1.NodeReady).Status = corev1.ConditionTrue
	f.Put(back)
	// Those that are still missing may come back together with the one that did.
	for _, step := range []time.Duration{time.Second, f.options.LeaseTimeout - time.Millisecond} {
		if done, brakes = f.pass(step, silent[:2]...); len(done) != 0 || len(brakes) != 0 {
			t.Errorf("as soon as the brake came off: did %v, brakes %+v", done, brakes)
		}
	}
	if done, _ = f.pass(time.Millisecond, silent[:2]...); fmt.Sprint(done) != "[force web-0]" {
		t.Errorf("then did %v", done)
	}
	if done, _ = f.pass(f.options.NodeInterval-time.Millisecond, silent[:2]...); len(done) != 0 {
		t.Errorf("too fast: %v", done)
	}
	if done, _ = f.pass(time.Millisecond, silent[:2]...); fmt.Sprint(done) != "[force web-1]" {
		t.Errorf("at last did %v", done)
	}
}

// TestNodeAfterNode: nodes of one zone that are lost at once are evicted one after the other, those of different zones side by side.
func TestNodeAfterNode(t *testing.T) {
	f := newFixture(t, 12, func(i int) string { return string(rune('a' + i%2)) })
	var silent []string
	for i := range 6 { // three of six in each zone
		f.Put(makePod(fmt.Sprintf("web-%d", i), fmt.Sprintf("n%d", i)))
		silent = append(silent, fmt.Sprintf("n%d", i))
	}
	f.pass(2*time.Second, silent...)
	f.pass(4900*time.Millisecond, silent...)
	for i, want := range []string{"[force web-0 force web-1]", "[force web-2 force web-3]", "[force web-4 force web-5]", "[]"} {
		step := f.options.NodeInterval
		if i == 0 {
			step = 100 * time.Millisecond
		}
		if done, brakes := f.pass(step, silent...); fmt.Sprint(done) != want || len(brakes) != 0 {
			t.Errorf("step %d: %v, want %s, brakes %v", i, done, want, brakes)
		}
	}
}

// TestEvictionsAreSound: whatever nodes go silent and come back, no pod leaves a node that is not
// tainted, no identity pod leaves before fencing, and a zone with most of its nodes lost within
// the window loses no pod; without a brake, every pod that must go is gone in the end.
func TestEvictionsAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 8).Draw(t, "nodes")
		f := newFixture(t, nodes, func(i int) string { return string(rune('a' + i%2)) })
		f.skew = time.Duration(rapid.IntRange(-60, 60).Draw(t, "skew in s")) * time.Second
		identity := map[string]bool{}
		for i := range rapid.IntRange(1, 12).Draw(t, "pods") {
			name := fmt.Sprintf("p%d", i)
			edits := []func(*corev1.Pod){}
			if rapid.Bool().Draw(t, "identity") {
				identity[name] = true
				edits = append(edits, ofStatefulSet)
			}
			f.Put(makePod(name, fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "node")), edits...))
		}
		silent := map[string]time.Time{}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			name := fmt.Sprintf("n%d", rapid.IntRange(0, nodes-1).Draw(t, "who"))
			if _, was := silent[name]; was {
				delete(silent, name)
				n, _ := f.View.Node(name)
				back := n.Object.DeepCopy()
				placement.NodeCondition(back, corev1.NodeReady).Status = corev1.ConditionTrue
				f.Put(back)
			} else {
				silent[name] = f.Now
			}
			f.checkedPass(t, time.Duration(rapid.IntRange(0, 20000).Draw(t, "ms"))*time.Millisecond, silent, identity)
		}
		f.checkedPass(t, time.Hour, silent, identity)
		if _, brakes := f.checkedPass(t, time.Hour, silent, identity); len(brakes) > 0 {
			return
		}
		for _, p := range f.Pods("default") {
			if n, _ := f.View.Node(p.Spec.NodeName); n.Lost() {
				t.Fatalf("%s is still on lost %s", p.Name, n.Name)
			}
		}
	})
}

func (f *fixture) checkedPass(t *rapid.T, d time.Duration, silent map[string]time.Time, identity map[string]bool) ([]string, []Brake) {
	where := map[string]string{}
	for _, p := range f.Pods("default") {
		where[p.Name] = p.Spec.NodeName
	}
	var names []string
	for name := range silent {
		names = append(names, name)
	}
	done, brakes := f.pass(d, names...)
	for _, what := range done {
		pod, deleted := strings.CutPrefix(what, "force ")
		if !deleted {
			continue
		}
		since, quiet := silent[where[pod]]
		if !quiet {
			t.Fatalf("%s was taken off %s, which is well", pod, where[pod])
		}
		if identity[pod] && f.Now.Sub(since) < f.options.LeaseTimeout+f.options.Fencing {
			t.Fatalf("%s was given up %s after its node went silent", pod, f.Now.Sub(since))
		}
		n, _ := f.View.Node(where[pod])
		for _, b := range brakes {
			if b.Zone == n.Zone() {
				t.Fatalf("%s was evicted under the brake %+v", pod, b)
			}
		}
	}
	return done, brakes
}
