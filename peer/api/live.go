package api

import (
	"context"
	"fmt"
	"net/url"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"
)

// The types of this file read one object when it is asked for, where upstream keeps every object of the kind in an
// informer: this process already holds the replica, and a second copy of all Secrets, Services and EndpointSlices is
// memory for a question asked rarely.

// local reads the newest state this peer has, which may be a moment old.
var local = metav1.GetOptions{ResourceVersion: "0"}

// fresh falls back to a linearizable read when a local one did not find the object.
func fresh[T any](ctx context.Context, get func(context.Context, string, metav1.GetOptions) (T, error), name string) (T, error) {
	object, err := get(ctx, name, local)
	if apierrors.IsNotFound(err) {
		return get(ctx, name, metav1.GetOptions{})
	}
	return object, err
}

// liveTokens finds the objects that a service-account token is bound to.
type liveTokens struct{ client kubernetes.Interface }

func (l liveTokens) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return fresh(ctx, l.client.CoreV1().ServiceAccounts(namespace).Get, name)
}

func (l liveTokens) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return fresh(ctx, l.client.CoreV1().Pods(namespace).Get, name)
}

func (l liveTokens) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return fresh(ctx, l.client.CoreV1().Secrets(namespace).Get, name)
}

func (l liveTokens) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	return fresh(ctx, l.client.CoreV1().Nodes().Get, name)
}

func (l liveTokens) GetValidatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	return fresh(ctx, l.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get, name)
}

func (l liveTokens) GetMutatingWebhookConfiguration(ctx context.Context, name string) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	return fresh(ctx, l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get, name)
}

// liveServices finds where webhooks and service proxies connect to.
type liveServices struct{ client kubernetes.Interface }

// ResolveEndpoint gives the URL of a Service's port, as webhook configurations name it.
func (l liveServices) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	return proxy.ResolveCluster(l, namespace, name, port)
}

// GetEndpointSlices gives the EndpointSlices of one Service.
func (l liveServices) GetEndpointSlices(namespace, name string) ([]*discoveryv1.EndpointSlice, error) {
	list, err := l.client.DiscoveryV1().EndpointSlices(namespace).List(context.Background(), metav1.ListOptions{
		LabelSelector:   labels.Set{discoveryv1.LabelServiceName: name}.String(),
		ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint slices of %s/%s: %w", namespace, name, err)
	}
	slices := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		slices[i] = &list.Items[i]
	}
	return slices, nil
}

// Services and List make liveServices a corev1listers.ServiceLister.
func (l liveServices) Services(namespace string) corev1listers.ServiceNamespaceLister {
	return liveNamespaceServices{client: l.client, namespace: namespace}
}

// List lists the Services of all namespaces.
func (l liveServices) List(selector labels.Selector) ([]*corev1.Service, error) {
	return l.Services(metav1.NamespaceAll).List(selector)
}

type liveNamespaceServices struct {
	client    kubernetes.Interface
	namespace string
}

func (l liveNamespaceServices) Get(name string) (*corev1.Service, error) {
	return fresh(context.Background(), l.client.CoreV1().Services(l.namespace).Get, name)
}

func (l liveNamespaceServices) List(selector labels.Selector) ([]*corev1.Service, error) {
	list, err := l.client.CoreV1().Services(l.namespace).List(context.Background(), metav1.ListOptions{
		LabelSelector: selector.String(), ResourceVersion: "0",
	})
	if err != nil {
		return nil, err
	}
	services := make([]*corev1.Service, len(list.Items))
	for i := range list.Items {
		services[i] = &list.Items[i]
	}
	return services, nil
}
