package api

import (
	"fmt"
	"net/http"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	kubecore "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	endpointsstore "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	limitrangestore "k8s.io/kubernetes/pkg/registry/core/limitrange/storage"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	pvstore "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	pvcstore "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplatestore "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	controllerstore "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccountstore "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
)

// coreGroup provides the group of pods and services. Upstream's own provider is not usable: its allocators open etcd.
type coreGroup struct {
	*corerest.GenericConfig

	client     kubernetes.Interface
	authorizer authorizer.Authorizer
	services   liveServices
	kubelets   kubeletclient.ConnectionInfoGetter
	transport  *http.Transport
	addresses  ipallocator.Interface
	ports      portallocator.Interface
}

// NewRESTStorage adds what needs nodes, pods and addresses to upstream's generic part of the group.
func (g *coreGroup) NewRESTStorage(enabled serverstorage.APIResourceConfigSource, options generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := g.GenericConfig.NewRESTStorage(enabled, options)
	if err != nil {
		return info, err
	}
	resources := info.VersionedResourcesStorageMap["v1"]
	for _, add := range []func(map[string]rest.Storage, generic.RESTOptionsGetter) error{g.addRunning, g.addNetwork, g.addRest} {
		if err := add(resources, options); err != nil {
			return info, fmt.Errorf("core group: %w", err)
		}
	}
	return info, nil
}

// addRunning adds nodes, pods and service accounts, whose tokens are bound to pods and nodes.
func (g *coreGroup) addRunning(resources map[string]rest.Storage, options generic.RESTOptionsGetter) error {
	nodes, err := nodestore.NewStorage(options, kubeletclient.KubeletClientConfig{}, g.transport)
	if err != nil {
		return err
	}
	nodes.Proxy.Connection = g.kubelets
	resources["nodes"] = nodes.Node
	resources["nodes/status"] = nodes.Status
	resources["nodes/proxy"] = nodes.Proxy

	pods, err := podstore.NewStorage(options, g.kubelets, g.transport, g.client.PolicyV1(), g.authorizer)
	if err != nil {
		return err
	}
	resources["bindings"] = pods.LegacyBinding
	resources["pods"] = pods.Pod
	resources["pods/attach"] = pods.Attach
	resources["pods/binding"] = pods.Binding
	resources["pods/ephemeralcontainers"] = pods.EphemeralContainers
	resources["pods/eviction"] = pods.Eviction
	resources["pods/exec"] = pods.Exec
	resources["pods/log"] = pods.Log
	resources["pods/portforward"] = pods.PortForward
	resources["pods/proxy"] = pods.Proxy
	resources["pods/resize"] = pods.Resize
	resources["pods/status"] = pods.Status

	resources["serviceaccounts"].Destroy()
	webhooks := g.client.AdmissionregistrationV1()
	accounts, err := serviceaccountstore.NewREST(options, g.ServiceAccountIssuer, g.APIAudiences, g.authorizer, g.ServiceAccountMaxExpiration,
		pods.Pod.Store, resources["secrets"].(rest.Getter), nodes.Node.Store,
		webhooks.ValidatingWebhookConfigurations(), webhooks.MutatingWebhookConfigurations(), g.ExtendExpiration, g.MaxExtendedExpiration)
	if err != nil {
		return err
	}
	resources["serviceaccounts"] = accounts
	resources["serviceaccounts/token"] = accounts.Token
	return nil
}

// addNetwork adds services and endpoints.
func (g *coreGroup) addNetwork(resources map[string]rest.Storage, options generic.RESTOptionsGetter) error {
	family := g.addresses.IPFamily()
	services, status, proxy, err := servicestore.NewREST(options, family,
		map[kubecore.IPFamily]ipallocator.Interface{family: g.addresses}, g.ports,
		g.services, resources["pods"].(*podstore.REST), g.transport)
	if err != nil {
		return err
	}
	resources["services"] = services
	resources["services/status"] = status
	resources["services/proxy"] = proxy

	resources["endpoints"], err = endpointsstore.NewREST(options)
	return err
}

func (g *coreGroup) addRest(resources map[string]rest.Storage, options generic.RESTOptionsGetter) error {
	volumes, volumeStatus, err := pvstore.NewREST(options)
	if err != nil {
		return err
	}
	resources["persistentvolumes"], resources["persistentvolumes/status"] = volumes, volumeStatus
	claims, claimStatus, err := pvcstore.NewREST(options)
	if err != nil {
		return err
	}
	resources["persistentvolumeclaims"], resources["persistentvolumeclaims/status"] = claims, claimStatus
	controllers, err := controllerstore.NewStorage(options)
	if err != nil {
		return err
	}
	resources["replicationcontrollers"] = controllers.Controller
	resources["replicationcontrollers/status"] = controllers.Status
	resources["replicationcontrollers/scale"] = controllers.Scale
	if resources["limitranges"], err = limitrangestore.NewREST(options); err != nil {
		return err
	}
	resources["podtemplates"], err = podtemplatestore.NewREST(options)
	return err
}
