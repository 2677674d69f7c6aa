package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/placement"
)

// shard is one raft group, seen from outside. Its replicas are the real thing (replica.go); what any of them has applied is committed, and
// everybody who follows the shard learns of it from here.
type shard struct {
	pods       podSpecs
	model      *Model
	number     uint64
	replicas   []*replica // all there ever were
	assignment shardmap.Assignment
	assignedAt store.Revision
	reassigned time.Duration // when the assignment changed last
	leads      *replica      // who leads and reaches a majority; nil while nobody does
	leader     *node         // its node
	term       uint64
	voters     int // as the newest change of membership has it
	voterIDs   []uint64

	early   bool     // was told of by the checker of clocks
	index   uint64   // of the last entry that any replica has applied
	digests []uint64 // of what the last entries did, the newest last
	objects map[string]placement.Object
	sorted  []string                               // the keys of objects; nil after one has come or gone
	intents map[store.RequestID][]placement.Change // of transactions under way, for the checkers
}

const (
	podPrefix    = "/registry/pods/"
	daemonPrefix = "/registry/daemonsets/"
	budgetPrefix = "/registry/poddisruptionbudgets/"
)

// kinds are the objects the model knows: the prefix of their keys, as the API's storage writes them, and an empty one.
var kinds = []struct {
	prefix string
	make   func() placement.Object
}{
	{"/registry/minions/", func() placement.Object { return &corev1.Node{} }},
	{"/registry/namespaces/", func() placement.Object { return &corev1.Namespace{} }},
	{"/registry/services/specs/", func() placement.Object { return &corev1.Service{} }},
	{"/registry/services/endpoints/", func() placement.Object { return &corev1.Endpoints{} }}, //nolint:staticcheck // still written for old clients
	{"/registry/endpointslices/", func() placement.Object { return &discoveryv1.EndpointSlice{} }},
	{"/registry/deployments/", func() placement.Object { return &appsv1.Deployment{} }},
	{"/registry/replicasets/", func() placement.Object { return &appsv1.ReplicaSet{} }},
	{"/registry/statefulsets/", func() placement.Object { return &appsv1.StatefulSet{} }},
	{podPrefix, func() placement.Object { return &corev1.Pod{} }},
	{"/registry/controllerrevisions/", func() placement.Object { return &appsv1.ControllerRevision{} }},
	{daemonPrefix, func() placement.Object { return &appsv1.DaemonSet{} }},
	{jobPrefix, func() placement.Object { return &batchv1.Job{} }},
	{budgetPrefix, func() placement.Object { return &policyv1.PodDisruptionBudget{} }},
}

func keyOf(o placement.Object) string {
	name := o.GetName()
	if o.GetNamespace() != "" {
		name = o.GetNamespace() + "/" + name
	}
	switch o.(type) {
	case *corev1.Node:
		return kinds[0].prefix + name
	case *corev1.Namespace:
		return kinds[1].prefix + name
	case *corev1.Service:
		return kinds[2].prefix + name
	case *corev1.Endpoints: //nolint:staticcheck // see kinds
		return kinds[3].prefix + name
	case *discoveryv1.EndpointSlice:
		return kinds[4].prefix + name
	case *appsv1.Deployment:
		return kinds[5].prefix + name
	case *appsv1.ReplicaSet:
		return kinds[6].prefix + name
	case *appsv1.StatefulSet:
		return kinds[7].prefix + name
	case *corev1.Pod:
		return kinds[8].prefix + name
	case *appsv1.ControllerRevision:
		return kinds[9].prefix + name
	case *appsv1.DaemonSet:
		return daemonPrefix + name
	case *batchv1.Job:
		return jobPrefix + name
	case *policyv1.PodDisruptionBudget:
		return budgetPrefix + name
	}
	panic(fmt.Sprintf("the model has no kind %T", o))
}

// codec is what every API object can do.
type codec interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

func encode(o placement.Object) []byte {
	o.SetResourceVersion("")
	b, err := o.(codec).Marshal()
	if err != nil {
		panic(err) // an object of the model's own making
	}
	return b
}

func (s *shard) decode(key string, value []byte, at store.Revision) placement.Object {
	if strings.HasPrefix(key, podPrefix) {
		return s.pods.decode(value, at)
	}
	o := decode(key, value, at)
	switch o := o.(type) {
	case *discoveryv1.EndpointSlice:
		s.shareSlice(o)
	case *corev1.Endpoints: //nolint:staticcheck // see kinds
		s.shareEndpoints(o)
	}
	return o
}

func decode(key string, value []byte, at store.Revision) placement.Object {
	for _, kind := range kinds {
		if strings.HasPrefix(key, kind.prefix) {
			o := kind.make()
			if err := o.(codec).Unmarshal(value); err != nil {
				panic(err)
			}
			o.SetResourceVersion(at.String())
			return o
		}
	}
	panic("the model has no kind for the key " + key)
}

// draft is a transaction in the making: it reads its own writes.
type draft struct {
	shard      *shard
	now        time.Time
	conditions []store.Condition
	order      []string
	want       map[string]placement.Object // nil value: deleted
}

func (d *draft) get(key string) placement.Object {
	if o, written := d.want[key]; written {
		return o
	}
	o := d.shard.objects[key]
	condition := store.Condition{Key: key}
	if o != nil {
		condition.Revision = revision(o)
	}
	d.conditions = append(d.conditions, condition)
	d.order = append(d.order, key)
	d.want[key] = o
	return o
}

// written is a change that a shard has committed.
type written struct {
	store.Event
	before, now placement.Object // nil: there was none, and: it is gone
}

// transaction makes changes, by the API's rules, a transaction whose conditions are that nothing of it has changed meanwhile; or says why not.
func (s *shard) transaction(changes []placement.Change, now time.Time) (store.Transaction, error) {
	d := &draft{shard: s, now: now, want: map[string]placement.Object{}}
	for _, c := range changes {
		if err := d.apply(c); err != nil {
			return store.Transaction{}, err
		}
	}
	tx := store.Transaction{Conditions: d.conditions}
	for _, key := range d.order {
		switch o := d.want[key]; {
		case o == nil:
			tx.Ops = append(tx.Ops, store.Op{Key: key, Delete: true})
		case o != s.objects[key]:
			tx.Ops = append(tx.Ops, store.Op{Key: key, Value: encode(o)})
		}
	}
	return tx, nil
}

// keys are those of the shard's objects, in order. Every leader that begins reads the nodes in it.
func (s *shard) keys() []string {
	if s.sorted == nil {
		s.sorted = slices.Sorted(maps.Keys(s.objects))
	}
	return s.sorted
}

// take decodes what was committed.
func (s *shard) take(events []store.Event) []written {
	all := make([]written, 0, len(events))
	for _, event := range events {
		if !isObject(event.Key) {
			continue
		}
		w := written{Event: event, before: s.objects[event.Key]}
		if event.Delete || w.before == nil {
			s.sorted = nil
		}
		if event.Delete {
			delete(s.objects, event.Key)
		} else {
			w.now = s.decode(event.Key, event.Value, event.Revision)
			s.objects[event.Key] = w.now
		}
		all = append(all, w)
	}
	return all
}

func (d *draft) apply(c placement.Change) error {
	key := keyOf(c.Object)
	stored := d.get(key)
	if c.Verb == placement.Create {
		if stored != nil {
			return fmt.Errorf("%s exists", key)
		}
		o := copyOf(c.Object)
		o.SetCreationTimestamp(metav1.NewTime(d.now))
		o.SetGeneration(1)
		if o.GetUID() == "" {
			o.SetUID(placement.NewNames(key, d.now.String()).UID())
		}
		if pod, ok := o.(*corev1.Pod); ok {
			pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
		}
		d.want[key] = o
		return nil
	}
	switch {
	case stored == nil:
		return fmt.Errorf("%s does not exist", key)
	case c.UID != "" && c.UID != stored.GetUID():
		return fmt.Errorf("%s is another one by now", key)
	case c.ResourceVersion != "" && c.ResourceVersion != stored.GetResourceVersion():
		return fmt.Errorf("%s has changed", key)
	}
	switch c.Verb {
	case placement.Update:
		o := copyOf(c.Object)
		copyStatus(o, stored)
		if respecified(o, stored) {
			o.SetGeneration(stored.GetGeneration() + 1)
		}
		d.want[key] = o
		if o.GetDeletionTimestamp() != nil && len(o.GetFinalizers()) == 0 && ptr.Deref(o.GetDeletionGracePeriodSeconds(), 0) == 0 {
			d.want[key] = nil // the last finalizer is gone
		}
	case placement.UpdateStatus:
		o := d.own(key, stored)
		copyStatus(o, c.Object)
		o.SetAnnotations(c.Object.GetAnnotations())
		d.want[key] = o
	case placement.Bind:
		pod := copyOf(stored).(*corev1.Pod)
		if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
			return fmt.Errorf("%s cannot be bound any more", key)
		}
		pod.Spec.NodeName = c.Object.(*corev1.Pod).Spec.NodeName
		d.want[key] = pod
	case placement.Delete:
		d.delete(key, stored, c.GracePeriodSeconds)
	}
	return nil
}

// own is an object that the draft may change: a copy of what is stored, or what it has made itself.
func (d *draft) own(key string, o placement.Object) placement.Object {
	if o != d.shard.objects[key] {
		return o
	}
	return copyOf(o)
}

// delete is graceful for pods that have a node: the node ends them. Finalizers keep an object until the last of them is gone.
func (d *draft) delete(key string, stored placement.Object, seconds *int64) {
	pod, ok := stored.(*corev1.Pod)
	atOnce := !ok || pod.Spec.NodeName == "" || placement.Finished(pod) || seconds != nil && *seconds == 0
	if atOnce && len(stored.GetFinalizers()) == 0 {
		d.want[key] = nil
		return
	}
	if stored.GetDeletionTimestamp() != nil && (!atOnce || ptr.Deref(stored.GetDeletionGracePeriodSeconds(), 0) == 0) {
		return
	}
	pod = copyOf(pod).(*corev1.Pod)
	grace := ptr.Deref(pod.Spec.TerminationGracePeriodSeconds, 30)
	if atOnce {
		grace = 0
	}
	at := metav1.NewTime(d.now.Add(time.Duration(grace) * time.Second))
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace
	d.want[key] = pod
}

// copyOf is an object that shares everything below its fields with o. A draft only sets fields, and is encoded, so nobody writes into what is
// shared; deep copies would be most of the cost of a large cluster's start.
func copyOf(o placement.Object) placement.Object {
	switch o := o.(type) {
	case *corev1.Node:
		return ptr.To(*o)
	case *corev1.Namespace:
		return ptr.To(*o)
	case *corev1.Service:
		return ptr.To(*o)
	case *corev1.Endpoints: //nolint:staticcheck // see kinds
		return ptr.To(*o)
	case *discoveryv1.EndpointSlice:
		return ptr.To(*o)
	case *appsv1.Deployment:
		return ptr.To(*o)
	case *appsv1.ReplicaSet:
		return ptr.To(*o)
	case *appsv1.StatefulSet:
		return ptr.To(*o)
	case *corev1.Pod:
		return ptr.To(*o)
	case *appsv1.ControllerRevision:
		return ptr.To(*o)
	case *appsv1.DaemonSet:
		return ptr.To(*o)
	case *batchv1.Job:
		return ptr.To(*o)
	case *policyv1.PodDisruptionBudget:
		return ptr.To(*o)
	}
	panic(fmt.Sprintf("the model has no kind %T", o))
}

// copyStatus gives o the status of another object of its kind.
func copyStatus(o, from placement.Object) {
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status = from.(*corev1.Pod).Status
	case *corev1.Node:
		o.Status = from.(*corev1.Node).Status
	case *appsv1.Deployment:
		o.Status = from.(*appsv1.Deployment).Status
	case *appsv1.ReplicaSet:
		o.Status = from.(*appsv1.ReplicaSet).Status
	case *appsv1.StatefulSet:
		o.Status = from.(*appsv1.StatefulSet).Status
	case *appsv1.DaemonSet:
		o.Status = from.(*appsv1.DaemonSet).Status
	case *batchv1.Job:
		o.Status = from.(*batchv1.Job).Status
	case *policyv1.PodDisruptionBudget:
		o.Status = from.(*policyv1.PodDisruptionBudget).Status
	}
}

func respecified(a, b placement.Object) bool {
	switch a := a.(type) {
	case *appsv1.Deployment:
		return !apiequality.Semantic.DeepEqual(a.Spec, b.(*appsv1.Deployment).Spec)
	case *appsv1.ReplicaSet:
		return !apiequality.Semantic.DeepEqual(a.Spec, b.(*appsv1.ReplicaSet).Spec)
	case *appsv1.StatefulSet:
		return !apiequality.Semantic.DeepEqual(a.Spec, b.(*appsv1.StatefulSet).Spec)
	case *appsv1.DaemonSet:
		return !apiequality.Semantic.DeepEqual(a.Spec, b.(*appsv1.DaemonSet).Spec)
	}
	return false
}

// pod finds a pod by its key's parts.
func (s *shard) pod(key types.NamespacedName) (*corev1.Pod, bool) {
	pod, ok := s.objects["/registry/pods/"+key.String()].(*corev1.Pod)
	return pod, ok
}
