package storage

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// newNamespaces is a storage of namespaces: any type will do for their objects.
func newNamespaces(t *testing.T, host *consensus.Host) *pods {
	t.Helper()
	s, err := New(Config{
		Host:           host,
		Shards:         NewDirectory(host).Shards(),
		Codec:          testCodec,
		NewFunc:        func() runtime.Object { return &example.Pod{} },
		NewListFunc:    func() runtime.Object { return &example.PodList{} },
		Prefix:         "/registry",
		ResourcePrefix: "/namespaces",
		GroupResource:  schema.GroupResource{Resource: "namespaces"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &pods{Storage: s}
}

func record(t *testing.T, host *consensus.Host, namespace string) store.KV {
	t.Helper()
	kv, _, _, err := host.Get(t.Context(), consensus.MetaShard, shardmap.NamespaceKey(namespace), consensus.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestNamespacesGetShards(t *testing.T) {
	with, without := twoPeers(t)
	namespaces := newNamespaces(t, with)
	create := func(name string) uint64 {
		t.Helper()
		out := &example.Pod{}
		if err := namespaces.Create(t.Context(), "/namespaces/"+name, newPod("", name), out, 0); err != nil {
			t.Fatal(err)
		}
		kv := record(t, with, name)
		if kv.Mod <= revisionOf(t, out) || kv.Mod > revisionOf(t, out)+store.Tick {
			t.Errorf("%s is at %s, its record at %d: not one transaction", name, out.ResourceVersion, kv.Mod)
		}
		_, shard, ok := shardmap.DecodeNamespace(kv.Key, kv.Value)
		if !ok || kv.Expires != 0 {
			t.Fatalf("record of %s: %+v", name, kv)
		}
		return shard
	}
	load := map[uint64]int{}
	shards := map[string]uint64{}
	for i := range 2 * severalShards.shards {
		name := fmt.Sprintf("ns-%d", i)
		shards[name] = create(name)
		load[shards[name]]++
	}
	for shard := uint64(1); shard <= uint64(severalShards.shards); shard++ {
		if load[shard] != 2 {
			t.Errorf("namespaces per shard: %v, want 2 each", load)
		}
	}
	for _, host := range []*consensus.Host{with, without} {
		d := NewDirectory(host)
		for name, want := range shards {
			if got, err := d.Locate(t.Context(), name); err != nil || got != want {
				t.Errorf("%s is in shard %d (%v), want %d", name, got, err, want)
			}
		}
		if all, err := d.All(t.Context()); err != nil || fmt.Sprint(all) != "[1 2 3]" {
			t.Errorf("all shards: %v, %v", all, err)
		}
	}

	// a deleted namespace's record expires, and until then brings it back to its shard
	if err := namespaces.Delete(t.Context(), "/namespaces/ns-0", &example.Pod{}, nil, kstorage.ValidateAllObjectFunc, nil, kstorage.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.UnixMilli(record(t, with, "ns-0").Expires)); left < forgetAfter-time.Minute || left > forgetAfter {
		t.Errorf("the record goes in %v", left)
	}
	if again := create("ns-0"); again != shards["ns-0"] {
		t.Errorf("ns-0 came back in shard %d, was in %d", again, shards["ns-0"])
	}
}

// Names without a namespace object are served too, consistently on every peer.
func TestUnknownNamespacesHash(t *testing.T) {
	with, without := twoPeers(t)
	for i := range 20 {
		name := fmt.Sprintf("unknown-%d", i)
		a, err := NewDirectory(with).Locate(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := NewDirectory(without).Locate(t.Context(), name); err != nil || a != b || a == consensus.MetaShard {
			t.Errorf("%s is in shard %d on one peer and %d (%v) on the other", name, a, b, err)
		}
	}
}

// A watch over all namespaces that was opened before a data shard was added ends in silence when that is learned of,
// and goes on with it from where it was.
func TestWatchesFollowAddedShards(t *testing.T) {
	host := consensustest.NewHost(t, 2)
	layout := NewDirectory(host).Shards()
	layout.Locate = func(_ context.Context, namespace string) (uint64, error) { return strconv.ParseUint(namespace, 10, 64) }
	s, err := New(Config{
		Host: host, Shards: layout, Codec: testCodec, Prefix: "/registry", ResourcePrefix: "/pods", Namespaced: true,
		NewFunc: func() runtime.Object { return &example.Pod{} }, NewListFunc: func() runtime.Object { return &example.PodList{} },
		GroupResource: schema.GroupResource{Resource: "pods"},
	})
	if err != nil {
		t.Fatal(err)
	}
	create := func(namespace string) *example.Pod {
		t.Helper()
		out := &example.Pod{}
		if err := s.Create(t.Context(), "/pods/"+namespace+"/p", newPod(namespace, "p"), out, 0); err != nil {
			t.Fatal(err)
		}
		return out
	}
	everything := kstorage.ListOptions{ResourceVersion: create("1").ResourceVersion, Recursive: true, Predicate: kstorage.Everything}
	w, err := s.Watch(t.Context(), "/pods", everything)
	if err != nil {
		t.Fatal(err)
	}
	second := create("2")
	if event := <-w.ResultChan(); event.Type != watch.Added {
		t.Fatalf("the first event is %+v", event)
	}
	if shard, err := host.AddShard(t.Context()); err != nil || shard != 3 {
		t.Fatalf("added shard %d: %v", shard, err)
	}
	if event, open := <-w.ResultChan(); open {
		t.Fatalf("the old watch went on with %+v", event)
	}
	everything.ResourceVersion = second.ResourceVersion
	if w, err = s.Watch(t.Context(), "/pods", everything); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	third := create("3")
	if event := <-w.ResultChan(); event.Type != watch.Added || revisionOf(t, event.Object) != revisionOf(t, third) {
		t.Errorf("the new watch shows %+v", event)
	}
	// Namespaces are not put there before every peer must have learned of it.
	shards, err := NewDirectory(host).settledShards(t.Context())
	if err != nil || !slices.Equal(shards, []uint64{1, 2}) {
		t.Errorf("settled are %v: %v", shards, err)
	}
}
