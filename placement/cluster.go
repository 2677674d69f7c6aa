// Package placement holds what every decision about pods reads and returns.
//
// A View is one shard leader's picture of its namespaces and of all nodes. It is fed with
// objects as they commit, keeps its aggregates incrementally (one change costs the same in a
// cluster of 3 and of 5,000 nodes), and remembers what a change touched, so that only those
// workloads and services are planned again.
//
// The packages below it are pure functions of (View, now): schedule, workload, endpoints and
// repair return decisions or Changes and never modify the View; shards decides over values of
// its own. Nobody here reads a clock, draws a random number, or does I/O. Names and tie breaks
// come from hashes of identities.
//
// Feed a View everything (nodes first) before the first decision: to a decision, a node that the
// view has not heard of is a node that is gone.
//
// A View has one owner: its methods must not be called from several goroutines at once.
// Objects given to it are shared, not copied, and must never be modified afterwards.
package placement

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// Object is any API object: metadata and kind.
type Object interface {
	metav1.Object
	runtime.Object
}

// View is an indexed picture of one shard's objects and of all nodes.
type View struct {
	nodes    map[string]*Node // also nodes that only pods or a usage report have named so far
	slots    []*Node          // nodes whose object is known, in no particular order
	names    []string         // names of slots, sorted; nil after a change
	ring     []int32          // slots by hash; nil after a change
	zones    map[string]int   // how many nodes with an object each has
	troubled map[string]*Node // see Troubled
	// topologies are those asked for so far, by label; nil after a change
	topologies map[string]*Topology

	pods    map[types.NamespacedName]*Pod
	podsIn  map[string]map[string]*Pod
	podsOf  map[types.UID]map[types.NamespacedName]*Pod // by controller
	jobPods map[types.NamespacedName]map[string]*Pod    // by the name of the Job that controls them, be it there or not
	orphans map[string]map[string]*Pod                  // by namespace: pods without a controller
	pending map[types.NamespacedName]*Pod               // no node yet, not finished, not terminating
	ended   map[types.NamespacedName]*Pod               // finished, or terminating without a node

	hopeful   map[types.NamespacedName]*Pod            // those of pending that can gain from where other pods are
	nominated map[string]map[types.NamespacedName]*Pod // by node: waiting pods for which room is kept there

	labelSets    map[string]map[string]*LabelSet // by namespace and labels
	affinitySets map[string]*AffinitySet         // by what they say
	claimUsers   map[claimKey]int

	imageNodes map[string]int // image name → nodes that have it

	Namespaces      Table[*corev1.Namespace]
	PriorityClasses Table[*schedulingv1.PriorityClass]
	Volumes         Table[*corev1.PersistentVolume]
	Claims          Table[*corev1.PersistentVolumeClaim]
	StorageClasses  Table[*storagev1.StorageClass]
	CSINodes        Table[*storagev1.CSINode]
	CSIDrivers      Table[*storagev1.CSIDriver]
	CSICapacities   Table[*storagev1.CSIStorageCapacity]
	Attachments     Table[*storagev1.VolumeAttachment]
	Services        Table[*corev1.Service]
	Endpoints       Table[*corev1.Endpoints] //nolint:staticcheck // still served and written for old clients
	EndpointSlices  Table[*discoveryv1.EndpointSlice]
	Deployments     Table[*appsv1.Deployment]
	ReplicaSets     Table[*appsv1.ReplicaSet]
	Replication     Table[*corev1.ReplicationController]
	StatefulSets    Table[*appsv1.StatefulSet]
	DaemonSets      Table[*appsv1.DaemonSet]
	Jobs            Table[*batchv1.Job]
	CronJobs        Table[*batchv1.CronJob]
	Revisions       Table[*appsv1.ControllerRevision]
	Budgets         Table[*policyv1.PodDisruptionBudget]

	dirty    map[Ref]struct{}
	failures map[types.UID]failure // by controller
}

// NewView returns an empty view.
func NewView() *View {
	return &View{
		nodes:        map[string]*Node{},
		zones:        map[string]int{},
		troubled:     map[string]*Node{},
		pods:         map[types.NamespacedName]*Pod{},
		podsIn:       map[string]map[string]*Pod{},
		podsOf:       map[types.UID]map[types.NamespacedName]*Pod{},
		jobPods:      map[types.NamespacedName]map[string]*Pod{},
		orphans:      map[string]map[string]*Pod{},
		pending:      map[types.NamespacedName]*Pod{},
		labelSets:    map[string]map[string]*LabelSet{},
		affinitySets: map[string]*AffinitySet{},
		claimUsers:   map[claimKey]int{},
		hopeful:      map[types.NamespacedName]*Pod{},
		nominated:    map[string]map[types.NamespacedName]*Pod{},
		ended:        map[types.NamespacedName]*Pod{},
		imageNodes:   map[string]int{},
		dirty:        map[Ref]struct{}{},
		failures:     map[types.UID]failure{},
	}
}

// Upsert records an object as it is now. It reports false for what the view does not keep: other kinds, and a Node without a name, as a
// damaged store might have it, because no name is how a decision says that there is no node.
func (v *View) Upsert(obj Object) bool {
	switch o := obj.(type) {
	case *corev1.Pod:
		v.upsertPod(o)
	case *corev1.Node:
		if o.Name == "" {
			return false
		}
		v.upsertNode(o)
	default:
		if !v.put(obj) {
			return false
		}
		v.touch(obj)
	}
	return true
}

// Delete forgets an object; only its kind, namespace and name count. It reports false for a
// kind the view does not keep. Forgetting something unknown does nothing.
func (v *View) Delete(obj Object) bool {
	switch o := obj.(type) {
	case *corev1.Pod:
		v.deletePod(keyOf(o))
	case *corev1.Node:
		v.deleteNode(o.Name)
	default:
		old, known := v.remove(obj)
		if !known {
			return false
		}
		if old != nil {
			delete(v.failures, old.GetUID())
			v.touch(old)
		}
	}
	return true
}

// put stores an object of a kind that needs no aggregate.
func (v *View) put(obj Object) bool {
	switch o := obj.(type) {
	case *corev1.Namespace:
		v.Namespaces.put(o)
	case *schedulingv1.PriorityClass:
		v.PriorityClasses.put(o)
	case *corev1.PersistentVolume:
		v.Volumes.put(o)
	case *corev1.PersistentVolumeClaim:
		v.Claims.put(o)
	case *storagev1.StorageClass:
		v.StorageClasses.put(o)
	case *storagev1.CSINode:
		v.CSINodes.put(o)
	case *storagev1.CSIDriver:
		v.CSIDrivers.put(o)
	case *storagev1.CSIStorageCapacity:
		v.CSICapacities.put(o)
	case *storagev1.VolumeAttachment:
		v.Attachments.put(o)
	case *corev1.Service:
		v.Services.put(o)
	case *corev1.Endpoints: //nolint:staticcheck // see View.Endpoints
		v.Endpoints.put(o)
	case *discoveryv1.EndpointSlice:
		v.EndpointSlices.put(o)
	case *appsv1.Deployment:
		v.Deployments.put(o)
	case *appsv1.ReplicaSet:
		v.ReplicaSets.put(o)
	case *corev1.ReplicationController:
		v.Replication.put(o)
	case *appsv1.StatefulSet:
		v.StatefulSets.put(o)
	case *appsv1.DaemonSet:
		v.DaemonSets.put(o)
	case *batchv1.Job:
		v.Jobs.put(o)
	case *batchv1.CronJob:
		v.CronJobs.put(o)
	case *appsv1.ControllerRevision:
		v.Revisions.put(o)
	case *policyv1.PodDisruptionBudget:
		v.Budgets.put(o)
	default:
		return false
	}
	return true
}

// remove takes an object out of its table and returns what was there.
func (v *View) remove(obj Object) (old Object, known bool) {
	switch o := obj.(type) {
	case *corev1.Namespace:
		return removed(&v.Namespaces, o)
	case *schedulingv1.PriorityClass:
		return removed(&v.PriorityClasses, o)
	case *corev1.PersistentVolume:
		return removed(&v.Volumes, o)
	case *corev1.PersistentVolumeClaim:
		return removed(&v.Claims, o)
	case *storagev1.StorageClass:
		return removed(&v.StorageClasses, o)
	case *storagev1.CSINode:
		return removed(&v.CSINodes, o)
	case *storagev1.CSIDriver:
		return removed(&v.CSIDrivers, o)
	case *storagev1.CSIStorageCapacity:
		return removed(&v.CSICapacities, o)
	case *storagev1.VolumeAttachment:
		return removed(&v.Attachments, o)
	case *corev1.Service:
		return removed(&v.Services, o)
	case *corev1.Endpoints: //nolint:staticcheck // see View.Endpoints
		return removed(&v.Endpoints, o)
	case *discoveryv1.EndpointSlice:
		return removed(&v.EndpointSlices, o)
	case *appsv1.Deployment:
		return removed(&v.Deployments, o)
	case *appsv1.ReplicaSet:
		return removed(&v.ReplicaSets, o)
	case *corev1.ReplicationController:
		return removed(&v.Replication, o)
	case *appsv1.StatefulSet:
		return removed(&v.StatefulSets, o)
	case *appsv1.DaemonSet:
		return removed(&v.DaemonSets, o)
	case *batchv1.Job:
		return removed(&v.Jobs, o)
	case *batchv1.CronJob:
		return removed(&v.CronJobs, o)
	case *appsv1.ControllerRevision:
		return removed(&v.Revisions, o)
	case *policyv1.PodDisruptionBudget:
		return removed(&v.Budgets, o)
	default:
		return nil, false
	}
}

func removed[T Object](t *Table[T], o T) (Object, bool) {
	if old, ok := t.delete(keyOf(o)); ok {
		return old, true
	}
	return nil, true
}

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
