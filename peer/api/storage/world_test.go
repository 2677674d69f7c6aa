package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	kstorage "k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

var (
	testScheme = runtime.NewScheme()
	testCodecs = serializer.NewCodecFactory(testScheme)
	testCodec  = testCodecs.LegacyCodec(examplev1.SchemeGroupVersion)
)

// TestMain lets tests that wait do so beside each other also on few processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func init() {
	metav1.AddToGroupVersion(testScheme, metav1.SchemeGroupVersion)
	utilruntime.Must(example.AddToScheme(testScheme))
	utilruntime.Must(examplev1.AddToScheme(testScheme))
}

// topology is a way to lay namespaces out over shards.
type topology struct {
	name   string
	shards int
	locate func(namespace string) uint64
	all    []uint64
}

var (
	oneShard = topology{
		name: "one shard", shards: 1, all: []uint64{consensus.MetaShard},
		locate: func(string) uint64 { return consensus.MetaShard },
	}
	severalShards = topology{
		name: "several shards", shards: 3, all: []uint64{0, 1, 2, 3},
		locate: shardmap.Map{DataShards: []uint64{1, 2, 3}}.ShardFor,
	}
)

func (top topology) layout() Shards {
	return Shards{
		Locate: func(_ context.Context, namespace string) (uint64, error) { return top.locate(namespace), nil },
		All:    func(context.Context) ([]uint64, error) { return top.all, nil },
	}
}

// together is the topology with the namespaces in one shard.
func (top topology) together(namespaces []string) topology {
	if len(namespaces) == 0 || len(top.all) == 1 {
		return top
	}
	locate := top.locate
	top.locate = func(namespace string) uint64 {
		if slices.Contains(namespaces, namespace) {
			namespace = namespaces[0]
		}
		return locate(namespace)
	}
	return top
}

// hosts are shared by the tests that need none of their own: founding one takes a
// quarter of a second. Each test has its own key prefix there.
var (
	hostsMu  sync.Mutex
	hosts    = map[string]*consensus.Host{}
	prefixes atomic.Int64
)

// sharedHost is the host of a topology. It lives as long as the parent test.
func sharedHost(t *testing.T, top topology) *consensus.Host {
	t.Helper()
	hostsMu.Lock()
	defer hostsMu.Unlock()
	key := t.Name() + top.name
	if hosts[key] == nil {
		hosts[key] = consensustest.NewHost(t, top.shards)
	}
	return hosts[key]
}

// options adjust a test's storage.
type option func(*Config)

func withCodec(codec runtime.Codec) option { return func(c *Config) { c.Codec = codec } }
func withTransformer(transformer value.Transformer) option {
	return func(c *Config) { c.Transformer = transformer }
}
func withPrefix(prefix string) option { return func(c *Config) { c.Prefix = prefix } }

// newPods is a storage of pods as upstream's suite wants it: keys below /pods/, and
// values sealed by a transformer that tests can replace.
func newPods(t *testing.T, host *consensus.Host, top topology, options ...option) *pods {
	t.Helper()
	prefix := storagetesting.NewPrefixTransformer([]byte("test!"), false)
	config := Config{
		Host:           host,
		Shards:         top.layout(),
		Codec:          testCodec,
		NewFunc:        func() runtime.Object { return &example.Pod{} },
		NewListFunc:    func() runtime.Object { return &example.PodList{} },
		Prefix:         fmt.Sprintf("/test-%d", prefixes.Add(1)),
		ResourcePrefix: "/pods/",
		GroupResource:  schema.GroupResource{Resource: "pods"},
		Namespaced:     true,
		Transformer:    nonce{prefix},
		BookmarkPeriod: bookmarkPeriodInTests,
	}
	for _, option := range options {
		option(&config)
	}
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return &pods{Storage: s, prefix: prefix, replica: host}
}

// pods is a storage whose transformer can be replaced: upstream's
// InterfaceWithPrefixTransformer and InterfaceWithTransformerOverride.
type pods struct {
	*Storage
	prefix *storagetesting.PrefixTransformer
	// replica is a host that has a replica of the shards.
	replica *consensus.Host
}

func (p *pods) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	before := p.transformer
	modified := *p.prefix
	p.transformer = nonce{modify(&modified)}
	return func() { p.transformer = before }
}

func (p *pods) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	before := p.transformer
	p.transformer = modify(before)
	return func() { p.transformer = before }
}

// nonce makes every sealed value different, as encryption does: writing a value
// again is then a change, which upstream's test of stale values counts on.
type nonce struct{ value.Transformer }

var lastNonce atomic.Uint64

const nonceSize = 8

func (n nonce) TransformToStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, error) {
	sealed, err := n.Transformer.TransformToStorage(ctx, data, dataCtx)
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(sealed, lastNonce.Add(1)), nil
}

func (n nonce) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	if len(data) < nonceSize {
		return nil, false, errors.New("value without a nonce")
	}
	return n.Transformer.TransformFromStorage(ctx, data[:len(data)-nonceSize], dataCtx)
}

// checkStored is upstream's KeyValidation: what is stored has no version.
func (p *pods) checkStored(ctx context.Context, t *testing.T, key string) {
	t.Helper()
	key, err := p.keys.prepare(key, false)
	if err != nil {
		t.Fatal(err)
	}
	shard, err := p.shardOf(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	kv, found, _, err := p.host.Get(ctx, shard, key, consensus.Linearizable)
	if err != nil || !found {
		t.Fatalf("read %s: found %v, %v", key, found, err)
	}
	data, _, err := p.open(ctx, key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := runtime.Decode(testCodec, data)
	if err != nil {
		t.Fatal(err)
	}
	if pod := obj.(*example.Pod); pod.ResourceVersion != "" {
		t.Errorf("stored with resourceVersion %q", pod.ResourceVersion)
	}
}

func podKey(namespace, name string) string { return "/pods/" + namespace + "/" + name }

func newPod(namespace, name string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// create creates a pod and returns it as stored.
func (p *pods) create(t testing.TB, namespace, name string) *example.Pod {
	t.Helper()
	out := &example.Pod{}
	if err := p.Create(t.Context(), podKey(namespace, name), newPod(namespace, name), out, 0); err != nil {
		t.Fatalf("create %s/%s: %v", namespace, name, err)
	}
	return out
}

// label changes a pod.
func (p *pods) label(ctx context.Context, namespace, name, value string) (*example.Pod, error) {
	out := &example.Pod{}
	err := p.GuaranteedUpdate(ctx, podKey(namespace, name), out, false, nil, kstorage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		pod := obj.(*example.Pod)
		pod.Labels = map[string]string{"v": value}
		return pod, nil
	}), nil)
	return out, err
}

func (p *pods) remove(ctx context.Context, namespace, name string) (*example.Pod, error) {
	out := &example.Pod{}
	return out, p.Delete(ctx, podKey(namespace, name), out, nil, kstorage.ValidateAllObjectFunc, nil, kstorage.DeleteOptions{})
}

func revisionOf(t failer, obj runtime.Object) store.Revision {
	t.Helper()
	rev, err := kstorage.APIObjectVersioner{}.ObjectResourceVersion(obj)
	if err != nil {
		t.Fatal(err)
	}
	return store.Revision(rev)
}
