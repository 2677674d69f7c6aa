package api

import (
	"context"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/kubernetes/pkg/apis/coordination"
	coordinationconversion "k8s.io/kubernetes/pkg/apis/coordination/v1"
	leasestore "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
)

// leaseGroup serves the Leases of nodes from memory: a node's liveness never enters the log.
type leaseGroup struct {
	coordinationrest.RESTStorageProvider
	nodes func() []coordinationv1.Lease
}

// NewRESTStorage replaces the storage of Leases if there is a source for those of nodes.
func (g leaseGroup) NewRESTStorage(enabled serverstorage.APIResourceConfigSource, options generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := g.RESTStorageProvider.NewRESTStorage(enabled, options)
	if err != nil || g.nodes == nil {
		return info, err
	}
	leases := info.VersionedResourcesStorageMap["v1"]
	leases["leases"] = &leaseStorage{REST: leases["leases"].(*leasestore.REST), nodes: g.nodes}
	return info, nil
}

// leaseStorage answers reads of kube-node-lease from memory and everything else from the store.
type leaseStorage struct {
	*leasestore.REST
	nodes func() []coordinationv1.Lease
}

// Get returns one Lease.
func (s *leaseStorage) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	if request.NamespaceValue(ctx) != corev1.NamespaceNodeLease {
		return s.REST.Get(ctx, name, options)
	}
	for _, lease := range s.nodes() {
		if lease.Name == name {
			return internalLease(&lease)
		}
	}
	return nil, apierrors.NewNotFound(coordination.Resource("leases"), name)
}

// List returns the Leases of a namespace. A list of all namespaces holds only stored ones.
func (s *leaseStorage) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	if request.NamespaceValue(ctx) != corev1.NamespaceNodeLease {
		return s.REST.List(ctx, options)
	}
	// the empty list of the store gives the answer its revision, so that a client may watch from there
	stored, err := s.REST.List(ctx, options)
	if err != nil {
		return nil, err
	}
	list, ok := stored.(*coordination.LeaseList)
	if !ok {
		return stored, nil
	}
	for _, lease := range s.nodes() {
		internal, err := internalLease(&lease)
		if err != nil {
			return nil, err
		}
		if matches(options, internal) {
			list.Items = append(list.Items, *internal)
		}
	}
	return list, nil
}

func matches(options *metainternalversion.ListOptions, lease *coordination.Lease) bool {
	if options == nil {
		return true
	}
	if options.LabelSelector != nil && !options.LabelSelector.Matches(labels.Set(lease.Labels)) {
		return false
	}
	return options.FieldSelector == nil ||
		options.FieldSelector.Matches(generic.ObjectMetaFieldsSet(&lease.ObjectMeta, true))
}

func internalLease(lease *coordinationv1.Lease) (*coordination.Lease, error) {
	internal := &coordination.Lease{}
	if err := coordinationconversion.Convert_v1_Lease_To_coordination_Lease(lease.DeepCopy(), internal, nil); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return internal, nil
}
