package api

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	kubecore "k8s.io/kubernetes/pkg/apis/core"

	"shoal/peer/api/storage"
)

// bind binds a pod through upstream's admission and registry. It is what a leader does most, with a pod that it holds decoded: where that is
// of a known version, nothing is read, decoded or copied as a whole, and the version is the write's condition.
func (s *Server) bind(ctx context.Context, u user.Info, object runtime.Object) error {
	found := s.resources[schema.GroupKind{Kind: "Pod"}]
	pod, ok := object.(*corev1.Pod)
	if !ok || found.binding == nil {
		return apierrors.NewMethodNotSupported(found.gvr.GroupResource(), "bind")
	}
	t := &target{resource: found, metadata: pod, user: u, server: s}
	ctx = t.requestContext(ctx, Bind)
	if pod.ResourceVersion != "" {
		seen, err := unbound(pod)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		ctx = storage.WithSeen(ctx, seen)
	}
	return t.create(ctx, t.binding, "binding", &kubecore.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion},
		Target:     kubecore.ObjectReference{Kind: "Node", Name: pod.Spec.NodeName},
	}, pod.Name)
}

// unbound is the pod without its node, in upstream's internal version. It shares with the original what upstream's binding does not write
// into: all but labels, annotations and conditions.
func unbound(pod *corev1.Pod) (*kubecore.Pod, error) {
	before := *pod
	before.Spec.NodeName = ""
	before.Labels, before.Annotations = maps.Clone(pod.Labels), maps.Clone(pod.Annotations)
	before.Status.Conditions = slices.Clone(pod.Status.Conditions)
	internal := &kubecore.Pod{}
	return internal, legacyscheme.Scheme.Convert(&before, internal, nil)
}
