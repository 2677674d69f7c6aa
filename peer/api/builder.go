package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	extensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	extensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/union"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
	kubecontrolplane "k8s.io/kubernetes/pkg/controlplane"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	kubeadmission "k8s.io/kubernetes/pkg/kubeapiserver/admission"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
)

// eventTTL is how long Events are kept.
const eventTTL = time.Hour

// systemNamespaces exist from the start and come back when deleted.
var systemNamespaces = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}

// disabledHooks are upstream's that write on a timer or serve parts that are not here: the identity of each API server,
// the aggregation layer's trust, and tokens in Secrets from before Kubernetes 1.24.
var disabledHooks = []string{
	"start-kube-apiserver-identity-lease-controller",
	"start-kube-apiserver-identity-lease-garbage-collector",
	"start-cluster-authentication-info-controller",
	"start-legacy-token-tracking-controller",
}

// builder carries what the steps of New share.
type builder struct {
	server    *Server
	config    *Config
	client    kubernetes.Interface
	options   options.CompletedOptions
	generic   *genericapiserver.Config
	informers informers.SharedInformerFactory
	stores    *stores
	services  liveServices
	resources resources

	kubeConfig *controlplane.Config
	plugins    []admission.PluginInitializer
}

func newBuilder(ctx context.Context, s *Server) (*builder, error) {
	b := &builder{server: s, config: &s.config, resources: s.resources}
	b.generic = genericapiserver.NewConfig(legacyscheme.Codecs)
	b.generic.LoopbackClientConfig = newLoopbackConfig(s.loaded, privilegedUser())
	client, err := kubernetes.NewForConfig(b.generic.LoopbackClientConfig)
	if err != nil {
		return nil, err
	}
	b.client, s.client, b.services = client, client, liveServices{client}
	if b.options, err = newOptions(ctx, b.config, client); err != nil {
		return nil, err
	}
	b.informers = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	if s.pods, err = newPodSource(s.config.Host, s.directory, s.config.Logger); err != nil {
		return nil, err
	}
	s.pods.Provide(b.informers)

	for _, step := range []func() error{b.basics, b.storage, b.openAPI, b.authentication, b.authorization, b.audit, b.admission} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// trim drops what no informer of this server looks at. Of pods, which are most of a cluster's objects, node authorisation
// needs what they refer to, and Pod Security what concerns security.
func trim(object any) (any, error) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return object, nil //nolint:nilerr // a deletion mark has no metadata and passes as it is
	}
	accessor.SetManagedFields(nil)
	if pod, ok := object.(*corev1.Pod); ok {
		trimPod(pod)
		pod.Status = corev1.PodStatus{
			Phase: pod.Status.Phase, ResourceClaimStatuses: pod.Status.ResourceClaimStatuses,
			ExtendedResourceClaimStatus: pod.Status.ExtendedResourceClaimStatus,
		}
	}
	return object, nil
}

func (b *builder) basics() error {
	if err := b.options.GenericServerRunOptions.ApplyTo(b.generic); err != nil {
		return err
	}
	b.generic.EffectiveVersion = reportedVersion{b.generic.EffectiveVersion}
	b.generic.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: newAddressOnly(b.config.AdvertiseAddress),
	}
	b.generic.APIServerID = b.config.PeerName
	b.generic.EnableProfiling = false
	b.generic.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return genericapiserver.DefaultBuildHandlerChain(longLists{directWatches{api}}, c)
	}
	b.generic.StorageObjectCountTracker = nil
	b.generic.DisabledPostStartHooks.Insert(disabledHooks...)
	b.generic.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	b.generic.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	return b.options.APIEnablement.ApplyTo(b.generic, kubecontrolplane.DefaultAPIResourceConfigSource(), legacyscheme.Scheme)
}

func (b *builder) storage() (err error) {
	if b.stores, err = newStores(b.options.Etcd, b.config, b.generic); err != nil {
		return err
	}
	b.stores.factory.APIResourceConfigSource = b.generic.MergedResourceConfig
	b.generic.RESTOptionsGetter = b.stores.builtin()
	return nil
}

func (b *builder) openAPI() error {
	setOpenAPI(b.generic, generatedopenapi.GetOpenAPIDefinitions, openapinamer.NewDefinitionNamer(legacyscheme.Scheme))
	b.generic.SkipOpenAPIInstallation = true // built on the first request instead, see serveOpenAPI
	return nil
}

func setOpenAPI(config *genericapiserver.Config, definitions openapicommon.GetOpenAPIDefinitions, namer *openapinamer.DefinitionNamer) {
	definitions = openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(definitions)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIConfig.Info.Title = "Kubernetes"
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.OpenAPIV3Config.Info.Title = "Kubernetes"
}

func (b *builder) lifetime() context.Context {
	return wait.ContextForChannel(b.generic.DrainedNotify())
}

func (b *builder) authentication() error {
	g := b.generic
	if err := b.options.Authentication.ApplyTo(b.lifetime(), &g.Authentication, g.SecureServing, nil,
		g.OpenAPIConfig, g.OpenAPIV3Config, b.client, b.informers, g.APIServerID); err != nil {
		return fmt.Errorf("authentication: %w", err)
	}
	byCertificate := x509request.NewDynamic(b.options.Authentication.ClientCert.CAContentProvider.VerifyOptions, x509request.CommonNameUserConversion)
	g.Authentication.Authenticator = union.New(authenticator.RequestFunc(authenticateLoopback),
		newCertificates(group.NewAuthenticatedGroupAdder(byCertificate)), g.Authentication.Authenticator)
	return nil
}

func (b *builder) authorization() (err error) {
	b.generic.Authorization.Authorizer, b.generic.RuleResolver, _, err = controlplane.BuildAuthorizer(
		b.lifetime(), b.options, nil, b.generic.APIServerID, b.informers)
	if err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	return nil
}

func (b *builder) admission() error {
	capabilities.Setup(true, 0)
	kubePlugins, err := (&kubeadmission.Config{}).New()
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	b.kubeConfig, b.plugins, err = controlplane.CreateConfig(b.options, b.generic, b.informers, b.services, b.stores.factory, b.services, kubePlugins)
	if err != nil {
		return fmt.Errorf("admission: %w", err)
	}
	b.kubeConfig.SystemNamespaces = systemNamespaces
	b.kubeConfig.EventTTL = eventTTL
	return nil
}

// extensions builds the server of custom resources, last of the chain.
func (b *builder) extensions() (*extensionsapiserver.CustomResourceDefinitions, error) {
	generic := *b.generic
	generic.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	generic.RESTOptionsGetter = b.stores.definitions()
	generic.MergedResourceConfig = extensionsapiserver.DefaultAPIResourceConfigSource()
	generic.SkipOpenAPIInstallation = false
	generic.Serializer = extensionsapiserver.Codecs
	setOpenAPI(&generic, extensionsopenapi.GetOpenAPIDefinitions, openapinamer.NewDefinitionNamer(extensionsapiserver.Scheme))

	config := &extensionsapiserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: generic, SharedInformerFactory: b.informers},
		ExtraConfig: extensionsapiserver.ExtraConfig{
			CRDRESTOptionsGetter: b.stores.customResources(),
			// above 1, upstream waits five seconds before it serves a new kind, for other servers' informers; ours read
			// their own replica and are milliseconds behind
			MasterCount:     1,
			ServiceResolver: b.services,
			AuthResolverWrapper: webhook.NewDefaultAuthenticationInfoResolverWrapper(
				b.kubeConfig.ProxyTransport, nil, generic.LoopbackClientConfig, generic.TracerProvider),
		},
	}
	server, err := config.Complete().New(genericapiserver.NewEmptyDelegateWithCustomHandler(notFound(generic.Serializer)))
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	return server, nil
}

// kube builds the server of the built-in groups, first of the chain.
func (b *builder) kube(next *extensionsapiserver.CustomResourceDefinitions) (*genericapiserver.GenericAPIServer, error) {
	complete := b.kubeConfig.Complete()
	server, err := complete.New(controlplane.KubeAPIServer, next.GenericAPIServer)
	if err != nil {
		return nil, err
	}
	addresses, err := ipallocator.NewMetaAllocator(b.client.NetworkingV1(), b.informers.Networking().V1().ServiceCIDRs(),
		b.informers.Networking().V1().IPAddresses(), b.config.ServiceCIDR.Addr().Is6(), nil)
	if err != nil {
		return nil, fmt.Errorf("ClusterIPs: %w", err)
	}
	bitmap, ports, err := newPortBitmap(b.generic.RESTOptionsGetter, nodePorts())
	if err != nil {
		return nil, err
	}
	b.server.ports = bitmap

	core := &coreGroup{
		GenericConfig: complete.NewCoreGenericConfig(),
		client:        b.client, authorizer: b.generic.Authorization.Authorizer, services: b.services,
		kubelets: newKubelets(b.config.KubeletDial), transport: b.kubeConfig.ProxyTransport,
		addresses: addresses, ports: ports,
	}
	if err := server.InstallAPIs(b.providers(core)...); err != nil {
		return nil, err
	}
	if b.config.Usage != nil {
		if err := installMetrics(server.GenericAPIServer, b.client, b.config.Usage); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return server.GenericAPIServer, nil
}
