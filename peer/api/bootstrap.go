package api

import (
	"context"
	"errors"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/rbac"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// Upstream's hooks write the default roles and priority classes one by one, and begin a second after the start. A fresh
// cluster gets what is missing in a few transactions first; the hooks then run behind, for what an upgrade changes.

// missing returns what writes the objects of a group that are not there yet, or nil.
func (s *Server) missing(group string) func(context.Context) error {
	switch group {
	case rbac.GroupName:
		return s.createRoles
	case scheduling.GroupName:
		return s.createPriorityClasses
	}
	return nil
}

func (s *Server) createRoles(ctx context.Context) error {
	everywhere := pointers(append(append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...), metricsReader()))
	everywhere = append(everywhere, pointers(append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...))...)
	if err := s.createMissing(ctx, everywhere); err != nil {
		return fmt.Errorf("default cluster roles: %w", err)
	}
	bindings := bootstrappolicy.NamespaceRoleBindings()
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		if err := s.createMissing(ctx, append(pointers(roles), pointers(bindings[namespace])...)); err != nil {
			return fmt.Errorf("default roles of namespace %s: %w", namespace, err)
		}
	}
	return nil
}

func (s *Server) createPriorityClasses(ctx context.Context) error {
	var classes []runtime.Object
	for _, c := range schedulingv1.SystemPriorityClasses() {
		classes = append(classes, c)
	}
	if err := s.createMissing(ctx, classes); err != nil {
		return fmt.Errorf("system priority classes: %w", err)
	}
	return nil
}

// createMissing creates those of the objects that do not exist, in one transaction if they share a shard.
func (s *Server) createMissing(ctx context.Context, objects []runtime.Object) error {
	existing := map[string]map[types.NamespacedName]bool{}
	var changes []Change
	for _, object := range objects {
		kinds, _, err := legacyscheme.Scheme.ObjectKinds(object)
		if err != nil {
			return err
		}
		kind := s.resources[kinds[0].GroupKind()]
		names, listed := existing[kind.gvr.Resource]
		if !listed {
			if names, err = namesOf(ctx, kind.main); err != nil {
				return fmt.Errorf("list %s: %w", kind.gvr.Resource, err)
			}
			existing[kind.gvr.Resource] = names
		}
		metadata, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		if !names[types.NamespacedName{Namespace: metadata.GetNamespace(), Name: metadata.GetName()}] {
			changes = append(changes, Change{Verb: Create, Object: object})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	_, errs := s.Commit(ctx, user.APIServerUser, changes)
	return errors.Join(errs...)
}

// namesOf lists what this peer knows to exist, which may be a moment old: a commit finds out what is newer.
func namesOf(ctx context.Context, storage rest.Storage) (map[types.NamespacedName]bool, error) {
	lister, ok := storage.(rest.Lister)
	if !ok {
		return nil, errors.New("not a list")
	}
	list, err := lister.List(request.WithNamespace(ctx, metav1.NamespaceAll), &metainternalversion.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	names := map[types.NamespacedName]bool{}
	err = meta.EachListItem(list, func(object runtime.Object) error {
		metadata, err := meta.Accessor(object)
		if err == nil {
			names[types.NamespacedName{Namespace: metadata.GetNamespace(), Name: metadata.GetName()}] = true
		}
		return err
	})
	return names, err
}

// bootstrapped is a kind of default object.
type bootstrapped interface {
	rbacv1.ClusterRole | rbacv1.ClusterRoleBinding | rbacv1.Role | rbacv1.RoleBinding
}

func pointers[T bootstrapped](values []T) []runtime.Object {
	objects := make([]runtime.Object, len(values))
	for i := range values {
		objects[i] = any(&values[i]).(runtime.Object)
	}
	return objects
}
