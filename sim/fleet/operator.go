package fleet

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// operator is a small controller as people write them with client-go: it reads from informers' caches, and writes. Of every ConfigMap
// labelled as a ring, whose size it says, it keeps as many members, each of which is a Secret with its key and then a ConfigMap. Members
// that are too many go in the opposite order, the highest first.
type operator struct {
	client    kubernetes.Interface
	namespace string
	// edges has it act on what events tell instead of on what is there: the mistake that missed events punish.
	edges bool

	configMaps corelisters.ConfigMapLister
	secrets    corelisters.SecretLister
	queue      workqueue.TypedRateLimitingInterface[string]
	sizes      map[string]int // by ring: the last size that an event told
}

const (
	ringLabel = "ring" // on a ring: "yes"; on what belongs to one: its name
	isRing    = "yes"
	ringSize  = "size"
)

// runOperator works in one namespace until ctx ends.
func runOperator(ctx context.Context, config *rest.Config, namespace string, edges bool) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	defer closeIdle(client)
	o := &operator{client: client, namespace: namespace, edges: edges, sizes: map[string]int{}}
	// What a broken peer no longer answers must not hold it up for ever; the queue tries again.
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 2*time.Second)
	o.queue = workqueue.NewTypedRateLimitingQueue(limiter)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	configMaps, secrets := factory.Core().V1().ConfigMaps(), factory.Core().V1().Secrets()
	o.configMaps, o.secrets = configMaps.Lister(), secrets.Lister()
	for _, informer := range []cache.SharedIndexInformer{configMaps.Informer(), secrets.Informer()} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: o.changed, UpdateFunc: func(_, now any) { o.changed(now) }, DeleteFunc: o.changed,
		})
		if err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer o.queue.ShutDown()
	factory.WaitForCacheSync(ctx.Done())
	go func() {
		<-ctx.Done()
		o.queue.ShutDown()
	}()
	for o.next(ctx) {
	}
	return nil
}

// changed queues the ring that an object is or belongs to.
func (o *operator) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	meta, ok := object.(metav1.Object)
	if !ok {
		return
	}
	switch ring := meta.GetLabels()[ringLabel]; ring {
	case "":
	case isRing:
		o.queue.Add(meta.GetName())
	default:
		o.queue.Add(ring)
	}
}

func (o *operator) next(ctx context.Context) bool {
	ring, stop := o.queue.Get()
	if stop || ctx.Err() != nil {
		return false
	}
	defer o.queue.Done(ring)
	limit, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := o.reconcile(limit, ring); err != nil {
		o.queue.AddRateLimited(ring)
	} else {
		o.queue.Forget(ring)
	}
	return true
}

// reconcile makes a ring what it should be, by what the caches hold.
func (o *operator) reconcile(ctx context.Context, ring string) error {
	size := 0
	switch object, err := o.configMaps.ConfigMaps(o.namespace).Get(ring); {
	case err == nil:
		if size, err = strconv.Atoi(object.Data[ringSize]); err != nil {
			return err
		}
	case !apierrors.IsNotFound(err):
		return err
	}
	belongs := labels.SelectorFromSet(labels.Set{ringLabel: ring})
	members, err := o.configMaps.ConfigMaps(o.namespace).List(belongs)
	if err != nil {
		return err
	}
	keys, err := o.secrets.Secrets(o.namespace).List(belongs)
	if err != nil {
		return err
	}
	from := 0
	if o.edges { // only what has changed since the last event
		from = min(o.sizes[ring], size)
		if o.sizes[ring] == size {
			return nil
		}
	}
	for i := from; i < size; i++ {
		if err := o.grow(ctx, ring, i, members, keys); err != nil {
			return err
		}
	}
	err = o.shrink(ctx, size, members, keys)
	if err == nil {
		o.sizes[ring] = size
	}
	return err
}

func memberName(ring string, i int) string { return fmt.Sprintf("%s-%d", ring, i) }

// grow makes a member: the key first, so that no member is ever without.
func (o *operator) grow(ctx context.Context, ring string, i int, members []*corev1.ConfigMap, keys []*corev1.Secret) error {
	name := memberName(ring, i)
	meta := metav1.ObjectMeta{Name: name, Namespace: o.namespace, Labels: map[string]string{ringLabel: ring}}
	if !slices.ContainsFunc(keys, func(s *corev1.Secret) bool { return s.Name == name }) {
		key := &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"key": []byte(name)}}
		if _, err := o.client.CoreV1().Secrets(o.namespace).Create(ctx, key, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	if !slices.ContainsFunc(members, func(c *corev1.ConfigMap) bool { return c.Name == name }) {
		member := &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"key": name}}
		if _, err := o.client.CoreV1().ConfigMaps(o.namespace).Create(ctx, member, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// shrink removes members at or above a size, and keys without one. It says which object it means, as one that reads from a cache must.
func (o *operator) shrink(ctx context.Context, size int, members []*corev1.ConfigMap, keys []*corev1.Secret) error {
	number := func(meta *metav1.ObjectMeta) int {
		n, err := strconv.Atoi(meta.Name[len(meta.Labels[ringLabel])+1:])
		if err != nil {
			return -1
		}
		return n
	}
	slices.SortFunc(members, func(a, b *corev1.ConfigMap) int { return number(&b.ObjectMeta) - number(&a.ObjectMeta) })
	for _, member := range members {
		if number(&member.ObjectMeta) < size {
			continue
		}
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &member.UID, ResourceVersion: &member.ResourceVersion}}
		if err := o.client.CoreV1().ConfigMaps(o.namespace).Delete(ctx, member.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	for _, key := range keys {
		if number(&key.ObjectMeta) < size {
			continue
		}
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &key.UID, ResourceVersion: &key.ResourceVersion}}
		if err := o.client.CoreV1().Secrets(o.namespace).Delete(ctx, key.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
