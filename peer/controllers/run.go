package controllers

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
)

const (
	// discoveryPeriod is how often new kinds are looked for.
	discoveryPeriod = 30 * time.Second
	// workers is how many objects of one kind a controller works on at once, as kube-controller-manager's default.
	workers = 5
)

// Config is what the controllers need of their peer.
type Config struct {
	// Loopback configures a client with all rights; informers use it.
	Loopback *rest.Config
	// LoopbackAs configures a client for a user; each controller is a service account with only its own rights.
	LoopbackAs func(name string, groups ...string) *rest.Config
	// ProvidePods gives a factory its informer of pods. Nil leaves that to the factory.
	ProvidePods func(informers.SharedInformerFactory)
	// NodePorts is the record of node ports in use, for its repair.
	NodePorts rangeallocation.RangeRegistry

	// RootCA is the PEM bundle that pods verify the API with.
	RootCA []byte
	// ServiceAccountKey signs tokens that are kept in Secrets.
	ServiceAccountKey crypto.Signer
	// SigningCA returns the CA that signs approved certificate requests.
	SigningCA func() (*x509.Certificate, crypto.Signer, error)

	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.Loopback == nil || c.LoopbackAs == nil:
		return errors.New("controllers: no clients")
	case c.NodePorts == nil:
		return errors.New("controllers: no record of node ports")
	case len(c.RootCA) == 0:
		return errors.New("controllers: no root CA")
	case c.ServiceAccountKey == nil:
		return errors.New("controllers: no key for service-account tokens")
	case c.SigningCA == nil:
		return errors.New("controllers: no CA for certificate requests")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// environment is what the controllers share while they run.
type environment struct {
	Config
	client    kubernetes.Interface
	informers informers.SharedInformerFactory
	any       informerfactory.InformerFactory // any kind, by its metadata
	metadata  metadata.Interface
	tokens    informers.SharedInformerFactory // Secrets that hold tokens, and nothing else
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	started   chan struct{} // closed when the informers run
}

// runner does a controller's work until its context ends, and returns only when nothing of it runs any more.
type runner func(context.Context)

// build makes a controller. name is that of its service account in kube-system.
type build func(ctx context.Context, e *environment, name string) (runner, error)

// Run runs the controllers until ctx ends, and returns when all have stopped.
func Run(ctx context.Context, config Config) error {
	if err := config.complete(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e, anyKind, err := newEnvironment(config)
	if err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	var running sync.WaitGroup
	runners := make([]runner, 0, len(standing))
	for _, c := range standing {
		r, err := c.build(ctx, e, c.name)
		if err != nil {
			return fmt.Errorf("controllers: %s: %w", c.name, err)
		}
		runners = append(runners, r)
	}

	running.Go(func() { wait.UntilWithContext(ctx, func(context.Context) { e.mapper.Reset() }, discoveryPeriod) })
	e.informers.Start(ctx.Done())
	e.tokens.Start(ctx.Done())
	anyKind.Start(ctx.Done())
	close(e.started)
	for _, run := range runners {
		running.Go(func() { run(ctx) })
	}
	config.Logger.Debug("controllers run", "count", len(runners))

	running.Wait()
	e.informers.Shutdown()
	e.tokens.Shutdown()
	anyKind.Shutdown()
	return nil
}

func newEnvironment(config Config) (*environment, metadatainformer.SharedInformerFactory, error) {
	e := &environment{Config: config, started: make(chan struct{})}
	var err error
	if e.client, err = kubernetes.NewForConfig(config.Loopback); err != nil {
		return nil, nil, err
	}
	if e.metadata, err = metadata.NewForConfig(config.Loopback); err != nil {
		return nil, nil, err
	}
	e.informers = informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(trim))
	if config.ProvidePods != nil {
		config.ProvidePods(e.informers)
	}
	e.tokens = informers.NewSharedInformerFactoryWithOptions(e.client, 0, informers.WithTransform(trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("type", "kubernetes.io/service-account-token").String()
		}))
	anyKind := metadatainformer.NewSharedInformerFactoryWithOptions(e.metadata, 0, metadatainformer.WithTransform(trim))
	e.any = informerfactory.NewInformerFactory(e.informers, anyKind)
	e.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(e.client.Discovery()))
	return e, anyKind, nil
}

// trim drops what no controller looks at.
func trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	if pod, ok := object.(*corev1.Pod); ok {
		trimPod(pod)
	}
	return object, nil
}

// trimPod drops of pods, which are most of a cluster's objects, what only those read who place or run them. Affinity stays: quotas have a
// scope for it. No controller here writes a pod that it has from an informer.
func trimPod(pod *corev1.Pod) {
	pod.Annotations = nil
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			c.Command, c.Args, c.Env, c.VolumeMounts = nil, nil, nil, nil
			c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle = nil, nil, nil, nil
		}
	}
	pod.Spec.Tolerations, pod.Spec.TopologySpreadConstraints = nil, nil
}

// config is a controller's own client configuration. Upstream's bootstrap roles name its rights.
func (e *environment) config(name string) *rest.Config {
	groups := append(serviceaccount.MakeGroupNames(metav1.NamespaceSystem), "system:authenticated")
	return e.LoopbackAs(serviceaccount.MakeUsername(metav1.NamespaceSystem, name), groups...)
}

func (e *environment) clientOf(name string) (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(e.config(name))
}

// concurrently makes one runner of several.
func concurrently(all ...runner) runner {
	return func(ctx context.Context) {
		var running sync.WaitGroup
		for _, run := range all {
			running.Go(func() { run(ctx) })
		}
		running.Wait()
	}
}
