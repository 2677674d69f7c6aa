package storage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	gort "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

// seen is an event as a watch's reader sees it.
type seen struct {
	kind watch.EventType
	name string
	rev  store.Revision
}

// failer is a test or a property's one case.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func see(t failer, event watch.Event) seen {
	t.Helper()
	obj := event.Object
	if shared, ok := obj.(runtime.CacheableObject); ok {
		obj = shared.GetObject()
	}
	if status, ok := obj.(*metav1.Status); ok {
		t.Fatalf("watch failed: %s", status.Message)
	}
	pod := obj.(*example.Pod)
	return seen{event.Type, pod.Namespace + "/" + pod.Name, revisionOf(t, pod)}
}

// read takes n events.
func read(t failer, w watch.Interface, n int) []seen {
	t.Helper()
	events := make([]seen, 0, n)
	timeout := time.After(20 * time.Second)
	for len(events) < n {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				t.Fatalf("the watch ended after %d of %d events", len(events), n)
			}
			events = append(events, see(t, event))
		case <-timeout:
			t.Fatalf("%d of %d events within 20 s", len(events), n)
		}
	}
	return events
}

func watchAll(t testing.TB, p *pods, after store.Revision) watch.Interface {
	t.Helper()
	w, err := p.Watch(t.Context(), "/pods/", kstorage.ListOptions{ResourceVersion: after.String(), Recursive: true, Predicate: kstorage.Everything})
	if err != nil {
		t.Fatalf("watch from %d: %v", after, err)
	}
	t.Cleanup(w.Stop)
	return w
}

// listRevision is the revision of a list of everything.
func listRevision(t testing.TB, p *pods) store.Revision {
	t.Helper()
	list := &example.PodList{}
	if err := p.GetList(t.Context(), "/pods/", kstorage.ListOptions{Recursive: true, Predicate: kstorage.Everything}, list); err != nil {
		t.Fatal(err)
	}
	rev, err := store.ParseRevision(list.ResourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// twoPeers are a peer with a replica of every shard, and one with none.
func twoPeers(t *testing.T) (with, without *consensus.Host) {
	t.Helper()
	network := consensustest.NewNetwork()
	change := func(c *consensus.Config) { c.DataShards = severalShards.shards }
	with = network.Open(t, "peer-a", t.TempDir(), change)
	consensustest.Found(t, with)
	return with, network.Open(t, "peer-b", t.TempDir(), change)
}

// Concurrent writers in many namespaces, watched from two peers: both watches see
// one order, with every write once, and from any event's revision on either peer
// exactly the later events.
func TestWatchHasOneOrderEverywhere(t *testing.T) {
	t.Parallel()
	with, without := twoPeers(t)
	here := newPods(t, with, severalShards, withPrefix("/order"))
	there := newPods(t, without, severalShards, withPrefix("/order"))
	start := listRevision(t, here)
	watches := []watch.Interface{watchAll(t, here, start), watchAll(t, there, start), watchAll(t, here, start)}

	const writers, rounds = 8, 15
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			p := here
			if i%2 == 1 {
				p = there
			}
			namespace := fmt.Sprintf("ns-%d", i)
			for round := range rounds {
				if err := changeSomething(t.Context(), p, namespace, round); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	if t.Failed() {
		return
	}
	const total = writers * rounds
	order := read(t, watches[0], total)
	for i := 1; i < total; i++ {
		if order[i].rev <= order[i-1].rev {
			t.Fatalf("event %d at %d follows one at %d", i, order[i].rev, order[i-1].rev)
		}
	}
	for i, w := range watches[1:] {
		requireSame(t, fmt.Sprintf("watch %d", i+1), read(t, w, total), order)
	}
	for range 25 {
		i := rand.IntN(total - 1)
		p, peer := here, "the peer with replicas"
		if rand.IntN(2) == 0 {
			p, peer = there, "the peer without"
		}
		w := watchAll(t, p, order[i].rev)
		requireSame(t, fmt.Sprintf("from event %d on %s", i, peer), read(t, w, total-1-i), order[i+1:])
		w.Stop()
	}
}

// changeSomething goes through a pod's life over and over.
func changeSomething(ctx context.Context, p *pods, namespace string, round int) error {
	var err error
	switch round % 3 {
	case 0:
		err = p.Create(ctx, podKey(namespace, "p"), newPod(namespace, "p"), nil, 0)
	case 1:
		_, err = p.label(ctx, namespace, "p", fmt.Sprint(round))
	default:
		_, err = p.remove(ctx, namespace, "p")
	}
	if err != nil {
		return fmt.Errorf("%s, round %d: %w", namespace, round, err)
	}
	return nil
}

func requireSame(t *testing.T, what string, got, want []seen) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d events, want %d", what, len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s: event %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// Lists and watches of an idle cluster write nothing and give the same revision, also where they come from peers without a replica, which
// cannot know how far a shard is.
func TestIdleReadsWriteNothing(t *testing.T) {
	t.Parallel()
	network := consensustest.NewNetwork()
	var stores []*pods
	var holder *consensus.Host
	for i, peer := range []string{"peer-a", "peer-b", "peer-c"} {
		host := network.Open(t, peer, t.TempDir(), func(c *consensus.Config) { c.DataShards = severalShards.shards })
		if i == 0 {
			consensustest.Found(t, host)
			holder = host
		}
		stores = append(stores, newPods(t, host, severalShards, withPrefix("/idle")))
	}
	for i, p := range stores {
		p.create(t, "a", "p-"+strconv.Itoa(i))
	}
	first := listRevision(t, stores[0])
	var watches []watch.Interface
	for _, p := range stores {
		watches = append(watches, watchAll(t, p, first))
	}
	before := shardRevisions(holder)
	for range 5 {
		for i, p := range stores {
			if again := listRevision(t, p); again != first {
				t.Fatalf("an idle list is at %d, then through peer %d at %d", first, i, again)
			}
			watchAll(t, p, first).Stop()
		}
	}
	time.Sleep(2 * bookmarkPeriodInTests)
	for i, w := range watches {
		select {
		case event := <-w.ResultChan():
			t.Errorf("event on an idle cluster, through peer %d: %v", i, event)
		default:
		}
	}
	if after := shardRevisions(holder); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the shards went from %v to %v", before, after)
	}
}

func shardRevisions(host *consensus.Host) []store.Revision {
	var revisions []store.Revision
	for _, status := range host.Status() {
		revisions = append(revisions, status.Revision)
	}
	return revisions
}

// Bookmarks of a watch over all namespaces follow what happens to other resources.
func TestBookmarksAdvance(t *testing.T) {
	t.Parallel()
	host := sharedHost(t, severalShards)
	p, other := newPods(t, host, severalShards), newPods(t, host, severalShards)
	start := listRevision(t, p)
	options := kstorage.ListOptions{ResourceVersion: start.String(), Recursive: true, Predicate: kstorage.Everything}
	options.Predicate.AllowWatchBookmarks = true
	w, err := p.Watch(t.Context(), "/pods/", options)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	wrote := revisionOf(t, other.create(t, "a", "p"))
	for {
		bookmark := read(t, w, 1)[0]
		if bookmark.kind != watch.Bookmark {
			t.Fatalf("event %v, want a bookmark", bookmark)
		}
		if bookmark.rev < wrote {
			continue
		}
		// What clients are told never goes back, not even by a part of a tick.
		if listed := listRevision(t, p); listed < bookmark.rev {
			t.Errorf("a list after the bookmark %d is at %d", bookmark.rev, listed)
		}
		return
	}
}

// A watch that begins in the middle of nothing known, a revision of another
// namespace's shard, still misses no write that follows.
func TestWatchFromAnotherShardsRevision(t *testing.T) {
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	a, b := twoNamespaces(t, severalShards)
	for i := range 10 {
		from := revisionOf(t, p.create(t, a, fmt.Sprint(i)))
		w, err := p.Watch(t.Context(), "/pods/"+b, kstorage.ListOptions{ResourceVersion: from.String(), Recursive: true, Predicate: kstorage.Everything})
		if err != nil {
			t.Fatal(err)
		}
		created := p.create(t, b, fmt.Sprint(i))
		if got := read(t, w, 1)[0]; got.rev != revisionOf(t, created) {
			t.Fatalf("event %v, want the creation at %s", got, created.ResourceVersion)
		}
		w.Stop()
	}
}

// A revision ahead of the cluster is refused after a short wait, and one that will
// have come by then is waited for.
func TestRevisionsAhead(t *testing.T) {
	t.Parallel()
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	p.create(t, "a", "p")
	now := p.host.Now()
	far := now + store.At(store.Epoch.Add(time.Hour))
	soon := now + store.At(store.Epoch.Add(300*time.Millisecond))
	if err := p.Get(t.Context(), podKey("a", "p"), kstorage.GetOptions{ResourceVersion: far.String()}, &example.Pod{}); !kstorage.IsTooLargeResourceVersion(err) {
		t.Errorf("get from an hour ahead: %v", err)
	}
	if _, err := p.Watch(t.Context(), "/pods/a", kstorage.ListOptions{ResourceVersion: far.String(), Recursive: true, Predicate: kstorage.Everything}); !kstorage.IsTooLargeResourceVersion(err) {
		t.Errorf("watch from an hour ahead: %v", err)
	}
	if err := p.Get(t.Context(), podKey("a", "p"), kstorage.GetOptions{ResourceVersion: soon.String()}, &example.Pod{}); err != nil {
		t.Errorf("get from a moment ahead: %v", err)
	}
}

// Watches of one resource share the decoded object and its encodings.
func TestWatchesShareObjects(t *testing.T) {
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	start := listRevision(t, p)
	first, second := watchAll(t, p, start), watchAll(t, p, start)
	p.create(t, "a", "p")
	a, b := (<-first.ResultChan()).Object, (<-second.ResultChan()).Object
	shared, ok := a.(*sharedObject)
	if !ok || a != b {
		t.Fatalf("objects %T and %T are not one shared object", a, b)
	}
	encoded := runtime.EncodeOrDie(testCodec, a)
	if want := runtime.EncodeOrDie(testCodec, shared.GetObject()); encoded != want {
		t.Errorf("encoded as %s, want %s", encoded, want)
	}
	if len(shared.encodings) != 1 {
		t.Errorf("%d encodings are kept, want 1", len(shared.encodings))
	}
}

// Objects up to etcd's limit pass, through every kind of peer, and their watches;
// larger ones are refused in etcd's words.
func TestObjectsOfAnySizeUpToTheLimit(t *testing.T) {
	t.Parallel()
	with, without := twoPeers(t)
	for name, host := range map[string]*consensus.Host{"with": with, "without": without} {
		p := newPods(t, host, severalShards, withTransformer(nil), withCodec(testCodec))
		w := watchAll(t, p, listRevision(t, p))
		empty, err := runtime.Encode(testCodec, newPod("a", "fits"))
		if err != nil {
			t.Fatal(err)
		}
		room := MaxObject - len(p.keys.root()+"a/fits") - len(empty) - len(`,"annotations":{"x":""}`)
		fits, big := newPod("a", "fits"), newPod("a", "fits")
		fits.Annotations = map[string]string{"x": strings.Repeat("x", room)}
		big.Annotations = map[string]string{"x": strings.Repeat("x", room+1)}
		err = p.Create(t.Context(), podKey("a", "fits"), big, nil, 0)
		if !errors.Is(err, rpctypes.ErrRequestTooLarge) || err.Error() != "etcdserver: request is too large" {
			t.Errorf("%s a replica: an object above the limit: %v", name, err)
		}
		if err := p.Create(t.Context(), podKey("a", "fits"), fits, nil, 0); err != nil {
			t.Errorf("%s a replica: an object at the limit: %v", name, err)
		}
		for i := range 3 {
			if _, err := p.label(t.Context(), "a", "fits", fmt.Sprint(i)); !errors.Is(err, rpctypes.ErrRequestTooLarge) {
				t.Errorf("%s a replica: an update beyond the limit: %v", name, err)
			}
		}
		if _, err := p.remove(t.Context(), "a", "fits"); err != nil {
			t.Errorf("%s a replica: %v", name, err)
		}
		read(t, w, 2)
	}
}

// A watch that nobody reads costs the shard nothing and little memory, however much
// is written: it is cut when it is read again, with an error that says why.
func TestSlowWatchesAreCut(t *testing.T) { // not beside others, whose heap is the same
	const history, objects, size, total = 8 << 20, 4, 500 << 10, 100 << 20
	host := consensustest.NewNetwork().Open(t, "peer-a", t.TempDir(), func(c *consensus.Config) {
		c.DataShards = severalShards.shards
		c.History = store.Limits{Bytes: history}
		c.SnapshotEntries = 20 // else raft keeps what was written for itself
	})
	consensustest.Found(t, host)
	p := newPods(t, host, severalShards, withTransformer(nil))
	start := listRevision(t, p)
	everywhere, err := p.Watch(t.Context(), "/pods/", kstorage.ListOptions{ResourceVersion: start.String(), Recursive: true, Predicate: kstorage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	slow := map[string]watch.Interface{"all namespaces": everywhere}
	if slow["one namespace"], err = p.Watch(t.Context(), "/pods/a", kstorage.ListOptions{ResourceVersion: start.String(), Recursive: true, Predicate: kstorage.Everything}); err != nil {
		t.Fatal(err)
	}
	quick := watchAll(t, p, start)
	before := heapInUse()
	var most uint64
	for i := range total / size {
		pod := newPod("a", fmt.Sprint(i%objects))
		pod.Annotations = map[string]string{"x": strings.Repeat(string(rune('a'+i%26)), size)}
		out := &example.Pod{}
		if i < objects {
			err = p.Create(t.Context(), podKey("a", pod.Name), pod, out, 0)
		} else {
			err = p.GuaranteedUpdate(t.Context(), podKey("a", pod.Name), out, false, nil, kstorage.SimpleUpdate(func(runtime.Object) (runtime.Object, error) {
				return pod.DeepCopy(), nil
			}), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, quick, 1)[0]; got.rev != revisionOf(t, out) {
			t.Fatalf("write %d: the watch that is read brought %v, want %s", i, got, out.ResourceVersion)
		}
		if i%20 == 19 {
			most = max(most, heapInUse())
		}
	}
	if grown := int64(most) - int64(before); grown > total/2 {
		t.Errorf("the heap grew by %d MiB while %d MiB were written", grown>>20, total>>20)
	}
	for name, w := range slow {
		requireCut(t, name, w)
	}
}

// requireCut reads a watch to its end.
func requireCut(t *testing.T, name string, w watch.Interface) {
	t.Helper()
	var last watch.Event
	timeout := time.After(20 * time.Second)
	for n := 0; ; n++ {
		select {
		case <-timeout:
			t.Errorf("%s: not cut; %d events, the last a %s", name, n, last.Type)
			return
		case event, open := <-w.ResultChan():
			if open {
				last = event
				continue
			}
		}
		break
	}
	status, isStatus := last.Object.(*metav1.Status)
	if last.Type != watch.Error || !isStatus || !strings.Contains(status.Message, "too slow") {
		t.Errorf("%s: ended with %s %v", name, last.Type, last.Object)
	}
}

// heapInUse is what is reachable now.
func heapInUse() uint64 {
	var m gort.MemStats
	gort.GC()
	gort.ReadMemStats(&m)
	return m.HeapAlloc
}
