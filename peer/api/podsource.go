package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	kstorage "k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"

	"shoal/consensus"
	"shoal/peer/api/storage"
)

// PodSource lists and watches all pods as they are stored, for informers of this process. Pods are most of a cluster's
// objects; through the API each would be decoded, converted, encoded and decoded once more, which is most of what the
// start of a peer in a large cluster would take.
type PodSource struct{ pods *storage.Storage }

func newPodSource(host *consensus.Host, directory *storage.Directory, log *slog.Logger) (*PodSource, error) {
	s, err := storage.New(storage.Config{
		Host: host, Shards: directory.Shards(), Codec: storedCodec{scheme.Codecs.UniversalDeserializer()},
		NewFunc:     func() runtime.Object { return &corev1.Pod{} },
		NewListFunc: func() runtime.Object { return &corev1.PodList{} },
		Prefix:      "/registry", ResourcePrefix: "/pods", GroupResource: schema.GroupResource{Resource: "pods"},
		Namespaced: true, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return &PodSource{pods: s}, nil
}

// Provide makes the source that of a factory's informer of pods. It has to be called before anybody asks the factory for
// that.
func (p *PodSource) Provide(factory informers.SharedInformerFactory) {
	factory.InformerFor(&corev1.Pod{}, func(_ kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return cache.NewSharedIndexInformer(&cache.ListWatch{ListWithContextFunc: p.list, WatchFuncWithContext: p.watch},
			&corev1.Pod{}, resync, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	})
}

func (p *PodSource) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	pods := &corev1.PodList{}
	return pods, p.pods.GetList(ctx, podRoot, storageOptions(options), pods)
}

func (p *PodSource) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	events, err := p.pods.Watch(ctx, podRoot, storageOptions(options))
	if err != nil {
		return nil, err
	}
	return unshare(ctx, events), nil
}

// unshared is a watch whose reader owns what it gets: informers change their objects, and events are shared with other watches.
//
// Upstream's watch.Filter would do, but that it never ends when it is stopped with an event that nobody takes any more.
type unshared struct {
	events  watch.Interface
	results chan watch.Event
	ctx     context.Context
	cancel  context.CancelFunc
}

// unshare hands on the events of a watch until that ends, ctx does, or it is stopped.
func unshare(ctx context.Context, events watch.Interface) watch.Interface {
	u := &unshared{events: events, results: make(chan watch.Event)}
	u.ctx, u.cancel = context.WithCancel(ctx)
	go u.run()
	return u
}

// ResultChan implements watch.Interface.
func (u *unshared) ResultChan() <-chan watch.Event { return u.results }

// Stop implements watch.Interface.
func (u *unshared) Stop() { u.cancel() }

func (u *unshared) run() {
	defer close(u.results)
	defer u.cancel()
	defer u.events.Stop()
	for {
		var event watch.Event
		var open bool
		select {
		case event, open = <-u.events.ResultChan():
		case <-u.ctx.Done():
		}
		if !open {
			return
		}
		if shared, ok := event.Object.(runtime.CacheableObject); ok {
			event.Object = shared.GetObject()
		}
		select {
		case u.results <- event:
		case <-u.ctx.Done():
			return
		}
	}
}

const podRoot = "/pods/"

// storageOptions are what the API makes of the options of an informer, which have no selectors.
func storageOptions(options metav1.ListOptions) kstorage.ListOptions {
	predicate := kstorage.Everything
	predicate.Limit, predicate.Continue, predicate.AllowWatchBookmarks = options.Limit, options.Continue, options.AllowWatchBookmarks
	return kstorage.ListOptions{
		ResourceVersion: options.ResourceVersion, ResourceVersionMatch: options.ResourceVersionMatch, Predicate: predicate,
		Recursive: true, SendInitialEvents: options.SendInitialEvents,
	}
}

// storedCodec reads what is stored, which has the version that informers are for.
type storedCodec struct{ runtime.Decoder }

// Decode implements runtime.Decoder. What an earlier version stored gets the defaults of this one.
func (c storedCodec) Decode(data []byte, kind *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, found, err := c.Decoder.Decode(data, kind, into)
	if err == nil {
		SetDefaults(obj)
	}
	return obj, found, err
}

// Encode implements runtime.Encoder.
func (storedCodec) Encode(runtime.Object, io.Writer) error {
	return errors.New("the source of informers is for reading")
}

// Identifier implements runtime.Encoder.
func (storedCodec) Identifier() runtime.Identifier { return "stored" }

// trimPod drops of a pod what no admission plugin and no authoriser looks at: where it wants to be and what its containers
// are to do. Annotations stay as far as upstream reads them.
func trimPod(pod *corev1.Pod) {
	pod.ManagedFields, pod.Annotations = nil, securityAnnotations(pod.Annotations)
	pod.Spec.Tolerations, pod.Spec.Affinity, pod.Spec.TopologySpreadConstraints = nil, nil, nil
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			c.Command, c.Args, c.VolumeMounts, c.Resources = nil, nil, nil, corev1.ResourceRequirements{}
			// values from elsewhere are references
			c.Env = slices.DeleteFunc(c.Env, func(v corev1.EnvVar) bool { return v.ValueFrom == nil })
		}
	}
}

// securityAnnotations are those of Pod Security and of node authorisation.
func securityAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range all {
		if key == corev1.MirrorPodAnnotationKey || strings.Contains(key, "seccomp.security.alpha.kubernetes.io/") ||
			strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}
