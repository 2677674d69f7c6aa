package workload

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/record"
	upstream "k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"shoal/placement"
)

// upstreamSets is the same world under upstream's StatefulSet control.
type upstreamSets struct {
	sets
	lock *sync.Mutex // upstream starts several pods at once
}

func (u upstreamSets) do(verb placement.Verb, o placement.Object) error {
	u.lock.Lock()
	defer u.lock.Unlock()
	change := placement.Change{Verb: verb, Object: o}
	if verb == placement.Create {
		if err := u.Apply(placement.Plan{Changes: []placement.Change{change}}); err != nil {
			return apierrors.NewAlreadyExists(schema.GroupResource{}, o.GetName())
		}
		return nil
	}
	return u.Apply(placement.Plan{Changes: []placement.Change{change}})
}

func (u upstreamSets) CreatePod(_ context.Context, pod *corev1.Pod, _ *appsv1.StatefulSet) error {
	return u.do(placement.Create, pod)
}

func (u upstreamSets) GetPod(namespace, name string) (*corev1.Pod, error) {
	u.lock.Lock()
	defer u.lock.Unlock()
	if p, ok := u.View.Pod(namespace, name); ok {
		return p.Object, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{}, name)
}

func (u upstreamSets) UpdatePod(pod *corev1.Pod, _ *appsv1.StatefulSet) error {
	return u.do(placement.Update, pod)
}

func (u upstreamSets) DeletePod(pod *corev1.Pod) error { return u.do(placement.Delete, pod) }

func (u upstreamSets) CreateClaim(claim *corev1.PersistentVolumeClaim, _ *appsv1.StatefulSet) error {
	return u.do(placement.Create, claim)
}

func (u upstreamSets) GetClaim(namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	u.lock.Lock()
	defer u.lock.Unlock()
	if c, ok := u.View.Claims.Get(namespace, name); ok {
		return c, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{}, name)
}

func (u upstreamSets) UpdateClaim(claim *corev1.PersistentVolumeClaim, _ *appsv1.StatefulSet) error {
	return u.do(placement.Update, claim)
}

func (u upstreamSets) UpdateStatefulSetStatus(_ context.Context, set *appsv1.StatefulSet, status *appsv1.StatefulSetStatus) error {
	set = set.DeepCopy()
	set.Status = *status
	return u.do(placement.UpdateStatus, set)
}

// The history, with the objects of the world.

func (u upstreamSets) ListControllerRevisions(parent metav1.Object, _ schema.GroupVersionKind, _ labels.Selector) ([]*appsv1.ControllerRevision, error) {
	return u.View.Revisions.Of(parent.GetUID()), nil
}

func (u upstreamSets) CreateControllerRevision(parent metav1.Object, r *appsv1.ControllerRevision, _ *int32) (*appsv1.ControllerRevision, error) {
	r = r.DeepCopy()
	r.Namespace = parent.GetNamespace()
	return r, u.do(placement.Create, r)
}

func (u upstreamSets) DeleteControllerRevision(r *appsv1.ControllerRevision) error {
	return u.do(placement.Delete, r)
}

func (u upstreamSets) UpdateControllerRevision(r *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	r = r.DeepCopy()
	r.Revision = number
	return r, u.do(placement.Update, r)
}

func (u upstreamSets) AdoptControllerRevision(_ metav1.Object, _ schema.GroupVersionKind, r *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	return r, nil
}

func (u upstreamSets) ReleaseControllerRevision(_ metav1.Object, r *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	return r, nil
}

// sync lets upstream work until nothing changes any more.
func (u upstreamSets) sync() {
	u.t.Helper()
	control := upstream.NewDefaultStatefulSetControl(upstream.NewStatefulPodControlFromManager(u, &record.FakeRecorder{}), u, u)
	for range 100 {
		writes := u.Writes
		var pods []*corev1.Pod
		for _, p := range u.Pods("default") {
			pods = append(pods, p.DeepCopy())
		}
		if _, err := control.UpdateStatefulSet(context.Background(), u.set().DeepCopy(), pods, u.Now); err != nil {
			u.t.Fatalf("upstream: %v", err)
		}
		if u.Writes == writes {
			return
		}
	}
	u.t.Fatalf("upstream does not come to rest")
}

// picture is everything that users see of the set.
func (w sets) picture() string {
	var b strings.Builder
	st := w.set().Status
	fmt.Fprintf(&b, "replicas %d ready %d available %d current %d (%s) updated %d (%s) observed %d collisions %d\n", st.Replicas, st.ReadyReplicas,
		st.AvailableReplicas, st.CurrentReplicas, st.CurrentRevision, st.UpdatedReplicas, st.UpdateRevision, st.ObservedGeneration, ptr.Deref(st.CollisionCount, 0))
	for _, p := range w.Pods("default") {
		fmt.Fprintf(&b, "pod %s %v terminating %v %s %s host %s.%s", p.Name, p.Labels, p.DeletionTimestamp != nil, p.Status.Phase,
			p.Spec.Containers[0].Image, p.Spec.Hostname, p.Spec.Subdomain)
		for _, v := range p.Spec.Volumes {
			fmt.Fprintf(&b, " %s=%s", v.Name, v.PersistentVolumeClaim.ClaimName)
		}
		b.WriteString("\n")
	}
	for _, c := range w.View.Claims.In("default") {
		fmt.Fprintf(&b, "claim %s %v", c.Name, c.Labels)
		for _, r := range c.OwnerReferences {
			fmt.Fprintf(&b, " %s/%s", r.Kind, r.Name)
		}
		b.WriteString("\n")
	}
	for _, r := range w.View.Revisions.In("default") {
		fmt.Fprintf(&b, "revision %s %d %v %s\n", r.Name, r.Revision, r.Labels, r.Data.Raw)
	}
	return b.String()
}

// condemned lists the pods that are scaled away.
func (w sets) condemned() []*corev1.Pod {
	set := w.set()
	start := 0
	if set.Spec.Ordinals != nil {
		start = int(set.Spec.Ordinals.Start)
	}
	return slices.DeleteFunc(w.Pods("default"), func(p *corev1.Pod) bool {
		ordinal, _ := ordinalOf("db", p.Name)
		return ordinal >= start && ordinal < start+int(*set.Spec.Replicas)
	})
}

// isStuck tells whether a pod that was scaled away has ended. Upstream may wait for ever for it to get well, in ordered
// management; here it is deleted.
func (u upstreamSets) isStuck() bool {
	return slices.ContainsFunc(u.condemned(), func(p *corev1.Pod) bool { return placement.Finished(p) })
}

// tooEarly tells whether upstream has declared a rollout complete because a pod that was scaled away was just as many as the
// wanted ones, of which none was there: it does not count what it creates in the same step.
func (u upstreamSets) tooEarly(ours sets) bool {
	a, b := ours.set().Status, u.set().Status
	return len(u.condemned()) > 0 && a.CurrentRevision != a.UpdateRevision && b.CurrentRevision == b.UpdateRevision
}

// TestStatefulSetsAreUpstreams drives two equal worlds through the same events, one by our plans and one
// by upstream's control, and compares everything after each. isStuck and tooEarly are the deliberate differences.
func TestStatefulSetsAreUpstreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := genStatefulSet(t)
		ours, theirs := newSets(t, set), upstreamSets{newSets(t, set), &sync.Mutex{}}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			event := genSetEvent(t, ours)
			event(ours)
			event(theirs.sets)
			if theirs.isStuck() {
				return
			}
			ours.rest()
			theirs.Now = ours.Now
			theirs.sync()
			if theirs.tooEarly(ours) {
				return
			}
			if got, want := ours.picture(), theirs.picture(); got != want {
				t.Fatalf("ours:\n%s\nupstream's:\n%s", got, want)
			}
		}
	})
}

func genStatefulSet(t *rapid.T) *appsv1.StatefulSet {
	return makeStatefulSet(rapid.Int32Range(0, 5).Draw(t, "size"), func(s *appsv1.StatefulSet) {
		s.Spec.PodManagementPolicy = rapid.SampledFrom([]appsv1.PodManagementPolicyType{appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement}).Draw(t, "management")
		if rapid.IntRange(0, 4).Draw(t, "strategy") == 0 {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		} else {
			s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(rapid.SampledFrom([]intstr.IntOrString{
				intstr.FromInt32(1), intstr.FromInt32(2), intstr.FromString("10%"), intstr.FromString("60%"),
			}).Draw(t, "maxUnavailable"))
		}
		if rapid.Bool().Draw(t, "starts late") {
			s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: rapid.Int32Range(0, 3).Draw(t, "start")}
		}
		policy := rapid.SampledFrom([]appsv1.PersistentVolumeClaimRetentionPolicyType{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType})
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenDeleted: policy.Draw(t, "when deleted"), WhenScaled: policy.Draw(t, "when scaled"),
		}
	})
}

// genSetEvent draws something that can happen to any world in the state of this one.
func genSetEvent(t *rapid.T, w sets) func(sets) {
	spec := func(change func(*appsv1.StatefulSet)) func(sets) { return func(w sets) { w.edit(change) } }
	var name string
	if pods := w.Pods("default"); len(pods) > 0 {
		name = pods[rapid.IntRange(0, len(pods)-1).Draw(t, "pod")].Name
	}
	onPod := func(act func(sets, *corev1.Pod)) func(sets) {
		return func(w sets) {
			if p, ok := w.View.Pod("default", name); ok {
				act(w, p.Object)
			}
		}
	}
	switch rapid.IntRange(0, 9).Draw(t, "event") {
	case 0:
		size := rapid.Int32Range(0, 5).Draw(t, "size")
		return spec(func(s *appsv1.StatefulSet) { s.Spec.Replicas = &size })
	case 1:
		image := rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(t, "image")
		return spec(func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = image })
	case 2:
		partition := rapid.Int32Range(0, 4).Draw(t, "partition")
		return spec(func(s *appsv1.StatefulSet) {
			if r := s.Spec.UpdateStrategy.RollingUpdate; r != nil {
				r.Partition = &partition
			}
		})
	case 3:
		return onPod(func(w sets, p *corev1.Pod) { w.DeleteNow(p) })
	case 4:
		return func(w sets) { w.EndTerminating(nil) }
	case 5:
		return onPod(func(w sets, p *corev1.Pod) {
			w.EditPod(p, func(p *corev1.Pod) {
				if p.Spec.NodeName != "" {
					p.Status.Phase = corev1.PodFailed
				}
			})
		})
	case 6:
		return onPod(func(w sets, p *corev1.Pod) { w.start(p.Name, false) })
	default:
		return onPod(func(w sets, p *corev1.Pod) { w.start(p.Name, true) })
	}
}
