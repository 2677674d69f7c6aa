package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	restclient "k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	controlplane "k8s.io/kubernetes/pkg/controlplane/apiserver"
	admissionregistrationrest "k8s.io/kubernetes/pkg/registry/admissionregistration/rest"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	autoscalingrest "k8s.io/kubernetes/pkg/registry/autoscaling/rest"
	batchrest "k8s.io/kubernetes/pkg/registry/batch/rest"
	certificatesrest "k8s.io/kubernetes/pkg/registry/certificates/rest"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
	discoveryrest "k8s.io/kubernetes/pkg/registry/discovery/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	flowcontrolrest "k8s.io/kubernetes/pkg/registry/flowcontrol/rest"
	networkingrest "k8s.io/kubernetes/pkg/registry/networking/rest"
	noderest "k8s.io/kubernetes/pkg/registry/node/rest"
	policyrest "k8s.io/kubernetes/pkg/registry/policy/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	resourcerest "k8s.io/kubernetes/pkg/registry/resource/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	storagerest "k8s.io/kubernetes/pkg/registry/storage/rest"
)

// providers lists the built-in groups, in the order in which discovery prefers them.
func (b *builder) providers(core *coreGroup) []controlplane.RESTStorageProvider {
	generic := b.generic
	authorizer := generic.Authorization.Authorizer
	list := []controlplane.RESTStorageProvider{
		core,
		authenticationrest.RESTStorageProvider{Authenticator: generic.Authentication.Authenticator, APIAudiences: generic.Authentication.APIAudiences},
		authorizationrest.RESTStorageProvider{Authorizer: authorizer, RuleResolver: generic.RuleResolver},
		autoscalingrest.RESTStorageProvider{},
		batchrest.RESTStorageProvider{},
		certificatesrest.RESTStorageProvider{Authorizer: authorizer},
		leaseGroup{coordinationrest.RESTStorageProvider{}, b.config.NodeLeases},
		discoveryrest.StorageProvider{},
		networkingrest.RESTStorageProvider{},
		noderest.RESTStorageProvider{},
		policyrest.RESTStorageProvider{},
		rbacrest.RESTStorageProvider{Authorizer: authorizer},
		schedulingrest.RESTStorageProvider{},
		storagerest.RESTStorageProvider{},
		flowcontrolGroup{flowcontrolrest.RESTStorageProvider{}},
		appsrest.StorageProvider{},
		admissionregistrationrest.RESTStorageProvider{Authorizer: authorizer, DiscoveryClient: b.client.Discovery()},
		eventsrest.RESTStorageProvider{TTL: eventTTL},
		resourcerest.RESTStorageProvider{NamespaceClient: b.client.CoreV1().Namespaces(), Authorizer: authorizer},
	}
	for i, p := range list {
		list[i] = b.record(p)
	}
	return list
}

// flowcontrolGroup serves the API of priority and fairness without its hook, which writes default objects on a timer:
// this server limits requests in flight instead.
type flowcontrolGroup struct {
	inner flowcontrolrest.RESTStorageProvider
}

func (g flowcontrolGroup) GroupName() string { return g.inner.GroupName() }

func (g flowcontrolGroup) NewRESTStorage(enabled serverstorage.APIResourceConfigSource, options generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	return g.inner.NewRESTStorage(enabled, options)
}

// resources knows the REST storage of every built-in kind, for writes that skip HTTP.
type resources map[schema.GroupKind]resource

type resource struct {
	gvr      schema.GroupVersionResource
	internal schema.GroupVersionKind
	main     rest.Storage
	status   rest.Storage // nil if the kind has no status
	binding  rest.Storage // pods only
}

// record wraps a provider so that its storages are remembered and its hook cannot end the process.
func (b *builder) record(p controlplane.RESTStorageProvider) controlplane.RESTStorageProvider {
	recorded := recordedGroup{RESTStorageProvider: p, into: b.resources}
	if hooked, ok := p.(genericapiserver.PostStartHookProvider); ok {
		return hookedGroup{recorded, hooked, b.server.missing(p.GroupName()), b.config.Logger}
	}
	return recorded
}

type recordedGroup struct {
	controlplane.RESTStorageProvider
	into resources
}

func (g recordedGroup) NewRESTStorage(enabled serverstorage.APIResourceConfigSource, options generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := g.RESTStorageProvider.NewRESTStorage(enabled, options)
	if err != nil {
		return info, err
	}
	for _, version := range info.PrioritizedVersions {
		storages := info.VersionedResourcesStorageMap[version.Version]
		for name, storage := range storages {
			if err := g.into.add(version.WithResource(name), storage, storages); err != nil {
				return info, err
			}
		}
	}
	return info, nil
}

func (r resources) add(gvr schema.GroupVersionResource, storage rest.Storage, siblings map[string]rest.Storage) error {
	if _, ok := storage.(rest.Creater); !ok || isSubresource(gvr.Resource) {
		return nil
	}
	kinds, _, err := legacyscheme.Scheme.ObjectKinds(storage.New())
	if err != nil {
		return fmt.Errorf("kind of %s: %w", gvr.Resource, err)
	}
	kind := schema.GroupKind{Group: gvr.Group, Kind: kinds[0].Kind}
	if _, known := r[kind]; known {
		return nil // versions come best first
	}
	r[kind] = resource{
		gvr: gvr, internal: schema.GroupVersionKind{Group: kinds[0].Group, Version: runtime.APIVersionInternal, Kind: kinds[0].Kind},
		main: storage, status: siblings[gvr.Resource+"/status"], binding: siblings[gvr.Resource+"/binding"],
	}
	return nil
}

func isSubresource(name string) bool {
	for _, c := range name {
		if c == '/' {
			return true
		}
	}
	return false
}

// hookedGroup is a group that writes initial objects at start. Upstream ends the process when that fails for half a
// minute; here a peer without a quorum stays up, not ready, and keeps trying.
type hookedGroup struct {
	recordedGroup
	hooked genericapiserver.PostStartHookProvider
	first  func(context.Context) error // writes what readiness waits for; nil: the hook itself does
	log    *slog.Logger
}

func (g hookedGroup) PostStartHook() (string, genericapiserver.PostStartHookFunc, error) {
	name, hook, err := g.hooked.PostStartHook()
	if err != nil {
		return name, nil, err
	}
	return name, func(ctx genericapiserver.PostStartHookContext) error {
		ctx.LoopbackClientConfig = until(ctx, ctx.LoopbackClientConfig)
		whole := func() { persist(ctx, g.log, name, func(context.Context) error { return hook(ctx) }) }
		if g.first == nil {
			whole()
			return nil
		}
		persist(ctx, g.log, name, g.first)
		go whole()
		return nil
	}, nil
}

// until is config for clients whose requests fail at once when ctx has ended. Upstream's hooks write object after object without a context,
// and a request that is refused a connection is tried ten times: without a server that would go on for hours.
func until(ctx context.Context, config *restclient.Config) *restclient.Config {
	config = restclient.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return living{ctx, next} })
	return config
}

// living sends requests while ctx has not ended.
type living struct {
	ctx  context.Context
	next http.RoundTripper
}

func (l living) RoundTrip(request *http.Request) (*http.Response, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("the server has ended: %w", err)
	}
	return l.next.RoundTrip(request)
}

// persist repeats do until it succeeds or ctx ends.
func persist(ctx context.Context, log *slog.Logger, what string, do func(context.Context) error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := do(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			return
		}
		if pause > time.Second {
			log.Warn("not done yet, will try again", "what", what, "err", err, "in", pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
