// Package world is a small stand-in for the API server and the nodes, for tests of placement:
// it applies plans with the API's rules (preconditions, resource versions, generations, graceful
// deletion) and plays kubelet for the pods. It knows no validation and no defaults.
package world

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

// World holds the objects and the view that follows them.
type World struct {
	View    *placement.View
	Now     time.Time
	Events  []string // "Reason: Message" of applied plans
	Writes  int
	objects map[string]placement.Object
	version int
}

// New returns an empty world at a fixed time.
func New() *World {
	return &World{
		View:    placement.NewView(),
		Now:     time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC),
		objects: map[string]placement.Object{},
	}
}

func id(o placement.Object) string {
	return fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())
}

// Put stores an object as a client would create or replace it.
func (w *World) Put(o placement.Object) placement.Object {
	o = o.DeepCopyObject().(placement.Object)
	old := w.objects[id(o)]
	if old == nil {
		w.version++
		if o.GetUID() == "" {
			o.SetUID(types.UID(fmt.Sprintf("uid-%d", w.version)))
		}
		if created := o.GetCreationTimestamp(); created.IsZero() {
			o.SetCreationTimestamp(metav1.NewTime(w.Now))
		}
		o.SetGeneration(1)
	} else {
		o.SetUID(old.GetUID())
		o.SetCreationTimestamp(old.GetCreationTimestamp())
		o.SetGeneration(old.GetGeneration())
		if !apiequality.Semantic.DeepEqual(specOf(old), specOf(o)) {
			o.SetGeneration(old.GetGeneration() + 1)
		}
	}
	w.store(o)
	return o
}

func (w *World) store(o placement.Object) {
	w.version++
	o.SetResourceVersion(strconv.Itoa(w.version))
	w.objects[id(o)] = o
	w.View.Upsert(o)
}

// Remove takes an object away at once.
func (w *World) Remove(o placement.Object) {
	delete(w.objects, id(o))
	w.View.Delete(o)
}

// Apply applies a plan as one transaction and reports the first broken precondition.
func (w *World) Apply(plan placement.Plan) error {
	for _, c := range plan.Changes {
		if err := w.check(c); err != nil {
			return err
		}
	}
	for _, c := range plan.Changes {
		if err := w.apply(c); err != nil {
			return err
		}
		w.Writes++
		w.record(c.Events)
	}
	w.record(plan.Events)
	return nil
}

func (w *World) record(events []placement.Event) {
	for _, e := range events {
		w.Events = append(w.Events, e.Reason+": "+e.Message)
	}
}

func (w *World) check(c placement.Change) error {
	stored := w.objects[id(c.Object)]
	switch {
	case c.Verb == placement.Create:
		return nil // may be checked only when its turn comes
	case stored == nil:
		return nil
	case c.UID != "" && c.UID != stored.GetUID():
		return fmt.Errorf("%s %s: UID is %s, not %s", c.Verb, id(c.Object), stored.GetUID(), c.UID)
	case c.ResourceVersion != "" && c.ResourceVersion != stored.GetResourceVersion():
		return fmt.Errorf("%s %s: version is %s, not %s", c.Verb, id(c.Object), stored.GetResourceVersion(), c.ResourceVersion)
	}
	return nil
}

func (w *World) apply(c placement.Change) error {
	stored := w.objects[id(c.Object)]
	if c.Verb == placement.Create {
		if stored != nil {
			return fmt.Errorf("create %s: exists", id(c.Object))
		}
		o := c.Object.DeepCopyObject().(placement.Object)
		clearStatus(o)
		w.Put(o)
		return nil
	}
	if stored == nil {
		return fmt.Errorf("%s %s: not found", c.Verb, id(c.Object))
	}
	switch c.Verb {
	case placement.Update:
		o := c.Object.DeepCopyObject().(placement.Object)
		copyStatus(o, stored)
		o.SetDeletionTimestamp(stored.GetDeletionTimestamp())
		if w.endsWith(stored, o) {
			w.Remove(stored)
			return nil
		}
		w.Put(o)
	case placement.UpdateStatus:
		o := stored.DeepCopyObject().(placement.Object)
		copyStatus(o, c.Object)
		o.SetAnnotations(c.Object.GetAnnotations())
		if node, ok := o.(*corev1.Node); ok {
			node.Spec = *c.Object.(*corev1.Node).Spec.DeepCopy()
		}
		w.store(o)
	case placement.Delete:
		if pod, ok := stored.(*corev1.Pod); ok && c.Disruption != nil {
			stored = disrupted(pod, c.Disruption)
			w.store(stored)
		}
		w.delete(stored, c.GracePeriodSeconds)
	}
	return nil
}

func disrupted(pod *corev1.Pod, why *corev1.PodCondition) *corev1.Pod {
	pod = pod.DeepCopy()
	if c := placement.PodCondition(pod, why.Type); c != nil {
		*c = *why
	} else {
		pod.Status.Conditions = append(pod.Status.Conditions, *why)
	}
	return pod
}

// delete is graceful for pods on nodes: they terminate until EndTerminating. Finalizers hold every
// object.
func (w *World) delete(o placement.Object, grace *int64) {
	pod, ok := o.(*corev1.Pod)
	atOnce := !ok || pod.Spec.NodeName == "" || placement.Finished(pod) || (grace != nil && *grace == 0)
	if atOnce && len(o.GetFinalizers()) == 0 {
		w.Remove(o)
		return
	}
	if o.GetDeletionTimestamp() == nil {
		o = o.DeepCopyObject().(placement.Object)
		at := metav1.NewTime(w.Now.Add(30 * time.Second))
		o.SetDeletionTimestamp(&at)
		w.store(o)
	}
}

// endsWith tells whether an update takes away the last finalizer of an object that is being deleted,
// and that nothing else keeps.
func (w *World) endsWith(stored, o placement.Object) bool {
	pod, isPod := stored.(*corev1.Pod)
	return stored.GetDeletionTimestamp() != nil && len(stored.GetFinalizers()) > 0 && len(o.GetFinalizers()) == 0 &&
		(!isPod || placement.Finished(pod) || pod.Spec.NodeName == "")
}

// DeleteNow deletes an object as a user does.
func (w *World) DeleteNow(o placement.Object) {
	if stored := w.objects[id(o)]; stored != nil {
		w.delete(stored, nil)
	}
}

// Pods lists the pods of a namespace by name.
func (w *World) Pods(namespace string) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, p := range w.View.PodsIn(namespace) {
		pods = append(pods, p.Object)
	}
	return pods
}

// EditPod changes a copy of a pod and stores it.
func (w *World) EditPod(pod *corev1.Pod, edit func(*corev1.Pod)) *corev1.Pod {
	stored, ok := w.objects[id(pod)]
	if !ok {
		return nil
	}
	pod = stored.DeepCopyObject().(*corev1.Pod)
	edit(pod)
	w.store(pod)
	return pod
}

// Bind places a pod.
func (w *World) Bind(pod *corev1.Pod, node string) {
	w.EditPod(pod, func(p *corev1.Pod) { p.Spec.NodeName = node })
}

// Run makes a placed pod running, ready or not.
func (w *World) Run(pod *corev1.Pod, ready bool) {
	w.EditPod(pod, func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		SetReady(p, ready, w.Now)
	})
}

// SetReady sets a pod's Ready condition; the transition time moves only with the status.
func SetReady(p *corev1.Pod, ready bool, now time.Time) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	if c := placement.PodCondition(p, corev1.PodReady); c != nil {
		if c.Status != status {
			c.Status, c.LastTransitionTime = status, metav1.NewTime(now)
		}
		return
	}
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
		Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(now),
	})
}

// EndTerminating removes the terminating pods that keep says nothing about.
func (w *World) EndTerminating(keep func(*corev1.Pod) bool) {
	for _, key := range slices.Sorted(maps.Keys(w.objects)) {
		pod, ok := w.objects[key].(*corev1.Pod)
		if !ok || pod.DeletionTimestamp == nil || keep != nil && keep(pod) {
			continue
		}
		if len(pod.Finalizers) == 0 {
			w.Remove(pod)
		} else if !placement.Finished(pod) {
			w.EditPod(pod, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		}
	}
}

func specOf(o placement.Object) any {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return o.Spec
	case *appsv1.ReplicaSet:
		return o.Spec
	case *appsv1.StatefulSet:
		return o.Spec
	case *appsv1.DaemonSet:
		return o.Spec
	case *corev1.ReplicationController:
		return o.Spec
	case *batchv1.Job:
		return o.Spec
	case *batchv1.CronJob:
		return o.Spec
	case *policyv1.PodDisruptionBudget:
		return o.Spec
	case *discoveryv1.EndpointSlice:
		return []any{o.Endpoints, o.Ports, o.Labels}
	default:
		return nil
	}
}

func clearStatus(o placement.Object) {
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status = corev1.PodStatus{Phase: corev1.PodPending}
	case *appsv1.Deployment:
		o.Status = appsv1.DeploymentStatus{}
	case *appsv1.ReplicaSet:
		o.Status = appsv1.ReplicaSetStatus{}
	case *batchv1.Job:
		o.Status = batchv1.JobStatus{}
	case *corev1.PersistentVolumeClaim:
		o.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
	}
}

// copyStatus gives o the status of another object of its kind.
func copyStatus(o, from placement.Object) {
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status = *from.(*corev1.Pod).Status.DeepCopy()
	case *corev1.Node:
		o.Status = *from.(*corev1.Node).Status.DeepCopy()
	case *appsv1.Deployment:
		o.Status = *from.(*appsv1.Deployment).Status.DeepCopy()
	case *appsv1.ReplicaSet:
		o.Status = *from.(*appsv1.ReplicaSet).Status.DeepCopy()
	case *appsv1.StatefulSet:
		o.Status = *from.(*appsv1.StatefulSet).Status.DeepCopy()
	case *appsv1.DaemonSet:
		o.Status = *from.(*appsv1.DaemonSet).Status.DeepCopy()
	case *corev1.ReplicationController:
		o.Status = *from.(*corev1.ReplicationController).Status.DeepCopy()
	case *batchv1.Job:
		o.Status = *from.(*batchv1.Job).Status.DeepCopy()
	case *batchv1.CronJob:
		o.Status = *from.(*batchv1.CronJob).Status.DeepCopy()
	case *policyv1.PodDisruptionBudget:
		o.Status = *from.(*policyv1.PodDisruptionBudget).Status.DeepCopy()
	}
}
