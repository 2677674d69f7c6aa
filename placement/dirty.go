package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// The kinds a Ref can have.
const (
	KindDeployment            = "Deployment"
	KindReplicaSet            = "ReplicaSet"
	KindReplicationController = "ReplicationController"
	KindStatefulSet           = "StatefulSet"
	KindDaemonSet             = "DaemonSet"
	KindJob                   = "Job"
	KindCronJob               = "CronJob"
	KindBudget                = "PodDisruptionBudget"
	KindService               = "Service"
	KindPod                   = "Pod"    // a pod waits for a node
	KindVolume                = "Volume" // a claim, a volume or a storage class changed: pods may wait for it
	KindNode                  = "Node"   // a node's room, taints, labels or readiness changed
)

// Ref names something that a change has touched and that should be planned again.
type Ref struct {
	Kind string
	types.NamespacedName
}

// Compare orders by kind, namespace and name.
func (r Ref) Compare(other Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, other.Kind), cmp.Compare(r.Namespace, other.Namespace), cmp.Compare(r.Name, other.Name))
}

// TakeDirty returns what the changes since the last call have touched, sorted, and forgets it.
// A ReplicaSet that a Deployment controls is not named: planning the Deployment covers it.
func (v *View) TakeDirty() []Ref {
	if len(v.dirty) == 0 {
		return nil
	}
	refs := slices.SortedFunc(maps.Keys(v.dirty), Ref.Compare)
	v.dirty = map[Ref]struct{}{} // one that was large once takes long to walk ever after, and all is touched when a leader takes over
	return refs
}

func (v *View) mark(kind string, key types.NamespacedName) {
	v.dirty[Ref{Kind: kind, NamespacedName: key}] = struct{}{}
}

// touch marks what an object that is neither pod nor node bears on.
func (v *View) touch(obj Object) {
	key := keyOf(obj)
	if c, ok := obj.(*corev1.PersistentVolumeClaim); ok {
		v.touchClaim(c)
	}
	switch o := obj.(type) {
	case *policyv1.PodDisruptionBudget:
		v.mark(KindBudget, key)
	case *appsv1.Deployment, *appsv1.ReplicaSet, *corev1.ReplicationController, *appsv1.StatefulSet:
		for _, b := range v.Budgets.in[key.Namespace] { // its size may be what a share is of
			v.mark(KindBudget, keyOf(b))
		}
		v.touchSet(obj)
	case *appsv1.DaemonSet:
		v.mark(KindDaemonSet, key)
	case *batchv1.Job:
		v.mark(KindJob, key)
		v.markController(o)
	case *batchv1.CronJob:
		v.mark(KindCronJob, key)
	case *appsv1.ControllerRevision:
		v.markController(o)
	case *corev1.Service:
		v.mark(KindService, key)
	case *corev1.Endpoints: //nolint:staticcheck // see View.Endpoints
		v.mark(KindService, key)
	case *corev1.PersistentVolumeClaim, *corev1.PersistentVolume, *storagev1.StorageClass, *storagev1.CSINode,
		*storagev1.CSIDriver, *storagev1.CSIStorageCapacity, *storagev1.VolumeAttachment:
		if len(v.pending) > 0 {
			v.mark(KindVolume, key)
		}
	case *corev1.Namespace:
		v.markHopeful(func(p *Pod) bool { return p.Affinity != nil })
	case *discoveryv1.EndpointSlice:
		if name := o.Labels[discoveryv1.LabelServiceName]; name != "" {
			v.mark(KindService, types.NamespacedName{Namespace: key.Namespace, Name: name})
		}
	}
}

// touchSet marks a workload of a size.
func (v *View) touchSet(obj Object) {
	switch o := obj.(type) {
	case *appsv1.Deployment:
		v.mark(KindDeployment, keyOf(o))
	case *appsv1.ReplicaSet:
		v.markReplicaSet(o)
	case *corev1.ReplicationController:
		v.mark(KindReplicationController, keyOf(o))
	case *appsv1.StatefulSet:
		v.mark(KindStatefulSet, keyOf(o))
	}
}

// touchClaim marks the StatefulSets one of whose pods has the claim, by its name.
func (v *View) touchClaim(c *corev1.PersistentVolumeClaim) {
	for _, s := range v.StatefulSets.in[c.Namespace] {
		for i := range s.Spec.VolumeClaimTemplates {
			if strings.HasPrefix(c.Name, s.Spec.VolumeClaimTemplates[i].Name+"-"+s.Name+"-") {
				v.mark(KindStatefulSet, keyOf(s))
			}
		}
	}
}

// Protects tells whether a budget is about pods with these labels. Other than with workloads, an empty
// selector is about all of the namespace.
func Protects(b *policyv1.PodDisruptionBudget, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	return err == nil && selector.Matches(labels.Set(set))
}

// markReplicaSet marks the Deployment that answers for a ReplicaSet, or the ReplicaSet itself.
func (v *View) markReplicaSet(rs *appsv1.ReplicaSet) {
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil {
		if ref.Kind == KindDeployment {
			v.mark(KindDeployment, types.NamespacedName{Namespace: rs.Namespace, Name: ref.Name})
			return
		}
		v.mark(KindReplicaSet, keyOf(rs))
		return
	}
	v.mark(KindReplicaSet, keyOf(rs))
	for _, d := range v.Deployments.in[rs.Namespace] {
		if selects(d.Spec.Selector, rs.Labels) {
			v.mark(KindDeployment, keyOf(d))
		}
	}
}

func (v *View) markController(o metav1.Object) {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil {
		return
	}
	key := types.NamespacedName{Namespace: o.GetNamespace(), Name: ref.Name}
	if ref.Kind == KindReplicaSet {
		if rs, ok := v.ReplicaSets.byKey[key]; ok {
			v.markReplicaSet(rs)
			return
		}
	}
	v.mark(ref.Kind, key)
}

// touchPod marks whom a pod's change bears on; old or p is nil when it came or went.
func (v *View) touchPod(old, p *Pod) {
	for _, pod := range []*Pod{old, p} {
		if pod == nil {
			continue
		}
		if metav1.GetControllerOfNoCopy(pod.Object) != nil {
			v.markController(pod.Object)
		} else {
			v.markAdopters(pod.Object)
		}
		for _, b := range v.Budgets.in[pod.Object.Namespace] {
			if Protects(b, pod.Object.Labels) {
				v.mark(KindBudget, keyOf(b))
			}
		}
		for _, svc := range v.Services.in[pod.Object.Namespace] {
			if len(svc.Spec.Selector) > 0 && labels.Set(svc.Spec.Selector).AsSelectorPreValidated().Matches(labels.Set(pod.Object.Labels)) {
				v.mark(KindService, keyOf(svc))
			}
		}
	}
	if p != nil {
		key := p.Key()
		if _, waits := v.pending[key]; waits {
			v.mark(KindPod, key)
		}
	}
	if p != nil && p.Object.Spec.NodeName != "" && len(v.hopeful) > 0 &&
		(old == nil || old.Object.Spec.NodeName == "" || !maps.Equal(old.Object.Labels, p.Object.Labels)) {
		v.markHopeful(func(*Pod) bool { return true })
	}
	// Room came free: pods that fitted nowhere may fit now.
	if old != nil && old.Object.Spec.NodeName != "" && !Finished(old.Object) &&
		(p == nil || Finished(p.Object) || !apiequality.Semantic.DeepEqual(old.Requests, p.Requests)) {
		v.mark(KindNode, types.NamespacedName{Name: old.Object.Spec.NodeName})
	}
}

// markHopeful marks one of the waiting pods for which something may have changed: whoever decides
// about one waiting pod decides about all.
func (v *View) markHopeful(changed func(*Pod) bool) {
	for key, p := range v.hopeful {
		if changed(p) {
			v.mark(KindPod, key)
			return
		}
	}
}

// hopes tells whether a waiting pod can become placeable by what other pods do beside leaving: pods
// it wants to be near, or pods elsewhere that even out its spread.
func (p *Pod) hopes() bool {
	return p.Affinity != nil || len(p.Object.Spec.TopologySpreadConstraints) > 0
}

// markAdopters marks the controllers that would adopt a pod without one.
func (v *View) markAdopters(pod *corev1.Pod) {
	for _, rs := range v.ReplicaSets.in[pod.Namespace] {
		if selects(rs.Spec.Selector, pod.Labels) {
			v.markReplicaSet(rs)
		}
	}
	for _, rc := range v.Replication.in[pod.Namespace] {
		if len(rc.Spec.Selector) > 0 && labels.Set(rc.Spec.Selector).AsSelectorPreValidated().Matches(labels.Set(pod.Labels)) {
			v.mark(KindReplicationController, keyOf(rc))
		}
	}
	for _, s := range v.StatefulSets.in[pod.Namespace] {
		if selects(s.Spec.Selector, pod.Labels) {
			v.mark(KindStatefulSet, keyOf(s))
		}
	}
	for _, d := range v.DaemonSets.in[pod.Namespace] {
		if selects(d.Spec.Selector, pod.Labels) {
			v.mark(KindDaemonSet, keyOf(d))
		}
	}
}

// touchNode marks whom a node's change bears on. A heartbeat that changes nothing marks nothing.
func (v *View) touchNode(n *Node, old, o *corev1.Node) {
	sameFace := old != nil && o != nil && n.Lost() == lost(old) &&
		apiequality.Semantic.DeepEqual(old.Labels, o.Labels) &&
		apiequality.Semantic.DeepEqual(old.Spec, o.Spec) && readyStatus(old) == readyStatus(o)
	if sameFace && apiequality.Semantic.DeepEqual(old.Status.Allocatable, o.Status.Allocatable) {
		return
	}
	v.mark(KindNode, types.NamespacedName{Name: n.Name})
	if sameFace {
		return
	}
	for _, d := range v.DaemonSets.byKey {
		v.mark(KindDaemonSet, keyOf(d))
	}
	for _, pod := range n.pods {
		v.touchPod(nil, pod)
	}
}

func lost(o *corev1.Node) bool { return (&Node{Object: o}).Lost() }

func readyStatus(o *corev1.Node) corev1.ConditionStatus { return (&Node{Object: o}).Ready() }

// selects tells whether a selector matches labels; an empty or broken one matches nothing here.
func selects(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && !selector.Empty() && selector.Matches(labels.Set(set))
}
