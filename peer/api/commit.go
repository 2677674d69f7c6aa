package api

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	kubecore "k8s.io/kubernetes/pkg/apis/core"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/api/storage"
)

// Verb says what a Change does.
type Verb string

// The verbs of a Change.
const (
	Create       Verb = "create"
	Update       Verb = "update"       // replaces the object; its resourceVersion, if set, must be the stored one
	UpdateStatus Verb = "updateStatus" // replaces the status; resourceVersion as for Update
	Delete       Verb = "delete"       // deletes by name; resourceVersion and UID, if set, must be the stored ones
	// Bind binds a Pod to Object.spec.nodeName and changes nothing else. With a resourceVersion Object is the pod as it was seen there in
	// all but the node; without one only its name and UID, if set, count.
	Bind Verb = "bind"
)

// Change is one write of a decision, on an object of a versioned built-in type (corev1.Pod, appsv1.ReplicaSet, …).
type Change struct {
	Verb   Verb
	Object runtime.Object
	// GracePeriodSeconds, for Delete: nil means the object's own, 0 at once.
	GracePeriodSeconds *int64
	// Propagation, for Delete: nil means the kind's default.
	Propagation *metav1.DeletionPropagation
	// Disruption, for Delete of a Pod: a condition that its status gets first.
	Disruption *corev1.PodCondition
}

// target is what a change works on, found once.
type target struct {
	resource
	object   runtime.Object // internal version
	metadata metav1.Object
	user     user.Info
	server   *Server
}

// ErrNotCommitted is what a change gets that is fine by itself, but shares a transaction with one that is not.
var ErrNotCommitted = errors.New("not committed: another change of the decision was refused")

// Commit applies a decision: all its changes go through defaulting, admission and validation as if requested by user, and
// are then proposed as one transaction per shard. It returns the revision from which on all of it is visible, and one error
// per change, nil for those that are committed. A created object keeps the UID that it has here, so that others of the
// same decision can name it as their owner.
//
// If admission or validation refuses any change, none is committed. If an object is not in the state that its change
// expects (apierrors.IsConflict, IsAlreadyExists), no change in the same shard is committed. The others get
// [ErrNotCommitted]. Field managers are not recorded. The user needs no permission: decisions are the cluster's own.
func (s *Server) Commit(ctx context.Context, name string, changes []Change) (store.Revision, []error) {
	errs := make([]error, len(changes))
	u := &user.DefaultInfo{Name: name, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	tx := storage.NewTransaction()
	collecting := storage.WithTransaction(ctx, tx)
	refused := false
	for i, change := range changes {
		errs[i] = s.apply(collecting, u, change)
		refused = refused || errs[i] != nil
	}
	if refused {
		return 0, fill(errs, ErrNotCommitted)
	}
	results, err := tx.Commit(ctx)
	var last store.Revision
	for _, result := range results {
		last = max(last, result.Revision)
	}
	if err == nil {
		return last, errs
	}
	if len(results) == 0 {
		return 0, fill(errs, err)
	}
	for i, change := range changes {
		errs[i] = s.outcome(ctx, change.Object, results)
	}
	return last, errs
}

// fill gives an error to every change that has none.
func fill(errs []error, err error) []error {
	for i := range errs {
		if errs[i] == nil {
			errs[i] = err
		}
	}
	return errs
}

// outcome finds what became of one object's change.
func (s *Server) outcome(ctx context.Context, object runtime.Object, results []storage.ShardResult) error {
	metadata, err := meta.Accessor(object)
	if err != nil {
		return err
	}
	shard, err := s.shardOf(ctx, metadata.GetNamespace())
	if err != nil {
		return err
	}
	for _, result := range results {
		if result.Shard != shard || result.Err == nil {
			continue
		}
		var conflict *storage.ConflictError
		if !errors.As(result.Err, &conflict) {
			return result.Err
		}
		for _, o := range conflict.Objects {
			if o.Namespace == metadata.GetNamespace() && o.Name == metadata.GetName() && s.isOf(object, o.Resource) {
				return o.Err
			}
		}
		return ErrNotCommitted
	}
	return nil
}

func (s *Server) shardOf(ctx context.Context, namespace string) (uint64, error) {
	if namespace == "" {
		return consensus.MetaShard, nil
	}
	return s.directory.Locate(ctx, namespace)
}

func (s *Server) isOf(object runtime.Object, resource schema.GroupResource) bool {
	kinds, _, err := legacyscheme.Scheme.ObjectKinds(object)
	return err == nil && s.resources[kinds[0].GroupKind()].gvr.GroupResource() == resource
}

func (s *Server) apply(ctx context.Context, u user.Info, change Change) error {
	if change.Verb == Bind {
		return s.bind(ctx, u, change.Object)
	}
	t, err := s.target(u, change.Object)
	if err != nil {
		return err
	}
	ctx = t.requestContext(ctx, change.Verb)
	switch change.Verb {
	case Create:
		if uid := t.metadata.GetUID(); uid != "" {
			ctx = storage.WithUID(ctx, uid)
		}
		return t.create(ctx, t.main, "", t.object, t.metadata.GetName())
	case Update:
		return t.update(ctx, t.main, "")
	case UpdateStatus:
		return t.update(ctx, t.status, "status")
	case Delete:
		return t.delete(ctx, change)
	}
	return apierrors.NewBadRequest(fmt.Sprintf("unknown verb %q", change.Verb))
}

func (s *Server) target(u user.Info, object runtime.Object) (*target, error) {
	kinds, _, err := legacyscheme.Scheme.ObjectKinds(object)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	found, ok := s.resources[kinds[0].GroupKind()]
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("no resource for kind %s", kinds[0]))
	}
	versioned := object.DeepCopyObject() // defaulting writes into it
	legacyscheme.Scheme.Default(versioned)
	internal, err := legacyscheme.Scheme.ConvertToVersion(versioned, found.internal.GroupVersion())
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	metadata, err := meta.Accessor(internal)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &target{resource: found, object: internal, metadata: metadata, user: u, server: s}, nil
}

// SetDefaults gives an object in a versioned type the values that the API gives to fields that are not set. What is stored has those of the
// version that wrote it; who reads the store without the API, as the leaders do, gives it the others.
func SetDefaults(versioned runtime.Object) { legacyscheme.Scheme.Default(versioned) }

// requestContext says to strategies and admission what a request's URL would have said.
func (t *target) requestContext(ctx context.Context, verb Verb) context.Context {
	info := &request.RequestInfo{
		IsResourceRequest: true, Verb: string(Update), APIPrefix: "apis",
		APIGroup: t.gvr.Group, APIVersion: t.gvr.Version, Resource: t.gvr.Resource,
		Namespace: t.metadata.GetNamespace(), Name: t.metadata.GetName(),
	}
	switch verb {
	case Create, Delete:
		info.Verb = string(verb)
	case UpdateStatus:
		info.Subresource = "status"
	case Bind:
		info.Verb, info.Subresource = string(Create), "binding"
	}
	ctx = request.WithUser(request.WithNamespace(ctx, t.metadata.GetNamespace()), t.user)
	return request.WithRequestInfo(ctx, info)
}

func (t *target) attributes(object, old runtime.Object, name, subresource string, op admission.Operation, options runtime.Object) admission.Attributes {
	kind := t.gvr.GroupVersion().WithKind(t.internal.Kind)
	return admission.NewAttributesRecord(object, old, kind, t.metadata.GetNamespace(), name, t.gvr, subresource, op, options, false, t.user)
}

// mutate runs the mutating half of admission.
func (t *target) mutate(ctx context.Context, a admission.Attributes) error {
	if m, ok := t.server.admit.(admission.MutationInterface); ok && m.Handles(a.GetOperation()) {
		return m.Admit(ctx, a, objectInterfaces())
	}
	return nil
}

func objectInterfaces() admission.ObjectInterfaces {
	return admission.NewObjectInterfacesFromScheme(legacyscheme.Scheme)
}

func (t *target) create(ctx context.Context, storage rest.Storage, subresource string, object runtime.Object, name string) error {
	options := &metav1.CreateOptions{}
	attributes := t.attributes(object, nil, name, subresource, admission.Create, options)
	if err := t.mutate(ctx, attributes); err != nil {
		return err
	}
	validate := rest.AdmissionToValidateObjectFunc(t.server.admit, attributes, objectInterfaces())
	if named, ok := storage.(rest.NamedCreater); ok {
		_, err := named.Create(ctx, name, object, validate, options)
		return err
	}
	creater, ok := storage.(rest.Creater)
	if !ok {
		return apierrors.NewMethodNotSupported(t.gvr.GroupResource(), "create")
	}
	_, err := creater.Create(ctx, object, validate, options)
	return err
}

func (t *target) update(ctx context.Context, storage rest.Storage, subresource string) error {
	updater, ok := storage.(rest.Updater)
	if !ok {
		return apierrors.NewMethodNotSupported(t.gvr.GroupResource(), "update")
	}
	name, options := t.metadata.GetName(), &metav1.UpdateOptions{}
	mutate := func(ctx context.Context, next, old runtime.Object) (runtime.Object, error) {
		return next, t.mutate(ctx, t.attributes(next, old, name, subresource, admission.Update, options))
	}
	attributes := t.attributes(t.object, nil, name, subresource, admission.Update, options)
	_, _, err := updater.Update(ctx, name, rest.DefaultUpdatedObjectInfo(t.object, mutate),
		rest.ValidateAllObjectFunc, // never called: an update does not create
		rest.AdmissionToValidateObjectUpdateFunc(t.server.admit, attributes, objectInterfaces()),
		false, options)
	return err
}

func (t *target) delete(ctx context.Context, change Change) error {
	deleter, ok := t.main.(rest.GracefulDeleter)
	if !ok {
		return apierrors.NewMethodNotSupported(t.gvr.GroupResource(), "delete")
	}
	if change.Disruption != nil {
		if err := t.disrupt(ctx, change.Disruption); err != nil {
			return err
		}
	}
	options := &metav1.DeleteOptions{GracePeriodSeconds: change.GracePeriodSeconds, PropagationPolicy: change.Propagation}
	if uid := t.metadata.GetUID(); uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	if version := t.metadata.GetResourceVersion(); version != "" {
		if options.Preconditions == nil {
			options.Preconditions = &metav1.Preconditions{}
		}
		options.Preconditions.ResourceVersion = &version
	}
	attributes := t.attributes(nil, nil, t.metadata.GetName(), "", admission.Delete, options)
	_, _, err := deleter.Delete(ctx, t.metadata.GetName(), rest.AdmissionToValidateObjectDeleteFunc(t.server.admit, attributes, objectInterfaces()), options)
	return err
}

// disrupt gives the stored pod a condition, whatever else its status says by now.
func (t *target) disrupt(ctx context.Context, condition *corev1.PodCondition) error {
	updater, ok := t.status.(rest.Updater)
	if _, isPod := t.object.(*kubecore.Pod); !ok || !isPod {
		return apierrors.NewMethodNotSupported(t.gvr.GroupResource(), "disrupt")
	}
	add := func(_ context.Context, _, stored runtime.Object) (runtime.Object, error) {
		pod := stored.(*kubecore.Pod).DeepCopy()
		if uid := t.metadata.GetUID(); uid != "" && uid != pod.UID {
			return nil, apierrors.NewConflict(t.gvr.GroupResource(), pod.Name, errors.New("it is another pod by now"))
		}
		podutil.UpdatePodCondition(&pod.Status, &kubecore.PodCondition{
			Type: kubecore.DisruptionTarget, Status: kubecore.ConditionTrue, Reason: condition.Reason, Message: condition.Message,
			LastTransitionTime: condition.LastTransitionTime,
		})
		return pod, nil
	}
	_, _, err := updater.Update(ctx, t.metadata.GetName(), rest.DefaultUpdatedObjectInfo(nil, add),
		rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return err
}
