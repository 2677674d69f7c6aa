package api

import (
	"context"
	"net"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
)

// KubernetesService is the name of the Service, in namespace default, behind which this API stands.
const KubernetesService = "kubernetes"

func notFound(serializer runtime.NegotiatedSerializer) http.Handler {
	return notfoundhandler.New(serializer, genericapifilters.NoMuxAndDiscoveryIncompleteKey)
}

// addHooks adds the writing of objects that must exist before the API is of use.
func (b *builder) addHooks(kube *genericapiserver.GenericAPIServer) error {
	err := kube.AddPostStartHook("service-cidr", func(ctx genericapiserver.PostStartHookContext) error {
		defaultservicecidr.NewController(b.config.serviceNet(), net.IPNet{}, b.client).Start(ctx)
		return nil
	})
	if err != nil {
		return err
	}
	return kube.AddPostStartHook("kubernetes-service", func(ctx genericapiserver.PostStartHookContext) error {
		// it waits for the namespace and the range of addresses, whose hooks run beside it
		persist(ctx, b.config.Logger, "create the kubernetes Service", b.createKubernetesService)
		return nil
	})
}

func (b *builder) createKubernetesService(ctx context.Context) error {
	services := b.client.CoreV1().Services(metav1.NamespaceDefault)
	if _, err := services.Get(ctx, KubernetesService, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	single := corev1.IPFamilyPolicySingleStack
	_, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: KubernetesService, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: b.config.serviceIP().String(), IPFamilyPolicy: &single,
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{
				Name: "https", Protocol: corev1.ProtocolTCP, Port: 443,
				TargetPort: intstr.FromInt32(int32(b.config.AdvertiseAddress.Port())),
			}},
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
