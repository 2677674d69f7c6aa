package controllers

import (
	"context"
	"runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/controller/bootstrap"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
	ipallocation "k8s.io/kubernetes/pkg/registry/core/service/ipallocator/controller"
	portallocation "k8s.io/kubernetes/pkg/registry/core/service/portallocator/controller"

	apimeta "k8s.io/apimachinery/pkg/runtime/schema"
)

// repairPeriod is how often allocated addresses and ports are compared with the Services that hold them.
const repairPeriod = 3 * time.Minute

// namespacePeriod is how often namespaces that are being deleted are looked at without a reason.
const namespacePeriod = 5 * time.Minute

// named is a controller and its service account.
type named struct {
	name  string
	build build
}

// standing run in every cluster.
var standing = []named{
	{"generic-garbage-collector", garbage},
	{"namespace-controller", namespaces},
	{"service-account-controller", accounts},
	{"tokens-controller", accountTokens},
	{"root-ca-cert-publisher", rootCA},
	{"resourcequota-controller", quota},
	{"certificate-controller", certificates},
	{"clusterrole-aggregation-controller", clusterRoles},
	{"pvc-protection-controller", claimProtection},
	{"pv-protection-controller", volumeProtection},
	{"persistent-volume-binder", volumeBinder},
	{"ephemeral-volume-controller", ephemeralClaims},
	{"horizontal-pod-autoscaler", autoscaler},
	{"token-cleaner", joinTokens},
	{"service-cidrs-controller", serviceRanges},
	{"service-repair", serviceRepair},
}

func garbage(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(e.config(name))
	if err != nil {
		return nil, err
	}
	ignored := map[apimeta.GroupResource]struct{}{}
	for resource := range garbagecollector.DefaultIgnoredResources() {
		ignored[resource] = struct{}{}
	}
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, metadataClient, e.mapper, ignored, e.any, e.started)
	collector, err := garbagecollector.NewComposedGarbageCollector(ctx, client, metadataClient, e.mapper, graph)
	if err != nil {
		return nil, err
	}
	return concurrently(
		func(ctx context.Context) { collector.Run(ctx, workers, discoveryPeriod) },
		func(ctx context.Context) { collector.Sync(ctx, client.Discovery(), discoveryPeriod) },
	), nil
}

func namespaces(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(e.config(name))
	if err != nil {
		return nil, err
	}
	c := namespace.NewNamespaceController(ctx, client, metadataClient, client.Discovery().ServerPreferredNamespacedResources,
		e.informers.Core().V1().Namespaces(), namespacePeriod, corev1.FinalizerKubernetes)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// joinTokens deletes expired join tokens, which are Kubernetes' bootstrap tokens.
func joinTokens(_ context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	secrets := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceSystem))
	c, err := bootstrap.NewTokenCleaner(client, secrets.Core().V1().Secrets(), bootstrap.DefaultTokenCleanerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		secrets.Start(ctx.Done())
		c.Run(ctx)
		secrets.Shutdown()
	}, nil
}

func clusterRoles(_ context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c := clusterroleaggregation.NewClusterRoleAggregation(e.informers.Rbac().V1().ClusterRoles(), client.RbacV1())
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func claimProtection(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := pvcprotection.NewPVCProtectionController(klog.FromContext(ctx),
		e.informers.Core().V1().PersistentVolumeClaims(), e.informers.Core().V1().Pods(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func volumeProtection(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := pvprotection.NewPVProtectionController(klog.FromContext(ctx), e.informers.Core().V1().PersistentVolumes(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func serviceRanges(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c := servicecidrs.NewController(ctx, e.informers.Networking().V1().ServiceCIDRs(), e.informers.Networking().V1().IPAddresses(), client)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

// serviceRepair gives back addresses and ports that a request took and a crash left without a Service. Upstream runs it
// in every API server; it has no role of its own and uses the privileged client.
func serviceRepair(ctx context.Context, e *environment, _ string) (runner, error) {
	addresses := ipallocation.NewRepairIPAddress(repairPeriod, e.client, e.informers.Core().V1().Services(),
		e.informers.Networking().V1().ServiceCIDRs(), e.informers.Networking().V1().IPAddresses())
	ports := portallocation.NewRepair(repairPeriod, e.client.CoreV1(), e.client.EventsV1(), kubeoptions.DefaultServiceNodePortRange, endingRegistry{e.NodePorts, ctx})
	return concurrently(untilDone(addresses.RunUntil), untilDone(ports.RunUntil)), nil
}

// endingRegistry ends with its context whoever reads it: upstream's repair tries for half a minute, whatever becomes of its stop channel.
type endingRegistry struct {
	rangeallocation.RangeRegistry
	ctx context.Context
}

func (r endingRegistry) Get() (*core.RangeAllocation, error) {
	allocated, err := r.RangeRegistry.Get()
	if err != nil && r.ctx.Err() != nil {
		runtime.Goexit() // the repair's goroutine is ours, and its stack has nothing else to do
	}
	return allocated, err
}

// untilDone adapts upstream's repair loops, which take a stop channel and a function to call after the first success.
func untilDone(run func(func(), chan struct{})) runner {
	return func(ctx context.Context) {
		stop := make(chan struct{})
		defer context.AfterFunc(ctx, func() { close(stop) })()
		run(func() {}, stop)
	}
}
