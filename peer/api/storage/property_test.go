package storage

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"
	"pgregory.net/rapid"

	"shoal/consensus"
	"shoal/consensus/store"
)

// world is a storage on several peers, and what must be true of it.
type world struct {
	ctx   context.Context
	peers map[string]*pods
	// events are all writes, by revision. That is not always the order in which they
	// were made: revisions of two shards follow the clocks of the peers that wrote.
	events []seen
	start  store.Revision
	// last is the revision of each peer's last write.
	last map[string]store.Revision
	open []*openWatch
}

// openWatch is a watch that runs since a revision.
type openWatch struct {
	where, scope string
	from         store.Revision
	w            watch.Interface
	got          []seen
}

// state is what existed at a revision: name → revision of the last write.
func (w *world) state(at store.Revision) map[string]store.Revision {
	state := map[string]store.Revision{}
	for _, event := range w.events {
		if event.rev > at {
			break
		}
		if delete(state, event.name); event.kind != watch.Deleted {
			state[event.name] = event.rev
		}
	}
	return state
}

// drawRevision is one of those that were handed out.
func (w *world) drawRevision(t *rapid.T) store.Revision {
	n := rapid.IntRange(0, len(w.events)).Draw(t, "revision of")
	if n == 0 {
		return w.start
	}
	return w.events[n-1].rev
}

func drawPeer(t *rapid.T) string {
	return rapid.SampledFrom([]string{"leader", "follower", "without"}).Draw(t, "peer")
}

var (
	someNamespaces = []string{"a", "b", "c", "d", "e"}
	someNames      = []string{"x", "y", "z"}
)

// write changes a pod, from any peer.
func (w *world) write(t *rapid.T) {
	where := drawPeer(t)
	p := w.peers[where]
	namespace := rapid.SampledFrom(someNamespaces).Draw(t, "namespace")
	name := rapid.SampledFrom(someNames).Draw(t, "name")
	key := namespace + "/" + name
	before, exists := w.state(math.MaxInt64)[key]
	kind, pod, err := watch.Added, &example.Pod{}, error(nil)
	switch {
	case !exists:
		err = p.Create(w.ctx, podKey(namespace, name), newPod(namespace, name), pod, 0)
	case rapid.IntRange(0, 2).Draw(t, "change") == 0:
		kind = watch.Deleted
		pod, err = p.remove(w.ctx, namespace, name)
	default:
		kind = watch.Modified
		pod, err = p.label(w.ctx, namespace, name, fmt.Sprint(len(w.events)))
	}
	if err != nil {
		t.Fatalf("%s of %s: %v", kind, key, err)
	}
	event := seen{kind, key, revisionOf(t, pod)}
	if event.rev <= before || event.rev <= w.last[where] || event.rev <= w.start {
		t.Fatalf("%s of %s on %s is at %d, not above the version before, %d, the peer's last write, %d, and the start, %d",
			kind, key, where, event.rev, before, w.last[where], w.start)
	}
	w.last[where] = event.rev
	at, _ := slices.BinarySearchFunc(w.events, event, func(a, b seen) int { return cmp.Compare(a.rev, b.rev) })
	w.events = slices.Insert(w.events, at, event)
}

// drawScope is everything or one namespace, as the prefix of names and as a key.
func drawScope(t *rapid.T) (names, key string) {
	if rapid.Bool().Draw(t, "everything") {
		return "", "/pods/"
	}
	namespace := rapid.SampledFrom(someNamespaces).Draw(t, "scope")
	return namespace + "/", "/pods/" + namespace
}

// watch begins anywhere in the past, on any peer.
func (w *world) watch(t *rapid.T) {
	if len(w.open) < 6 {
		names, _ := drawScope(t)
		w.watchFrom(t, names, w.drawRevision(t))
	}
}

func (w *world) watchFrom(t *rapid.T, scope string, from store.Revision) {
	o := &openWatch{where: drawPeer(t), scope: scope, from: from}
	var err error
	o.w, err = w.peers[o.where].Watch(w.ctx, "/pods/"+scope, kstorage.ListOptions{
		ResourceVersion: from.String(), Recursive: true, Predicate: kstorage.Everything,
	})
	if err != nil {
		t.Fatalf("watch %q on %s from %d: %v", scope, o.where, from, err)
	}
	w.open = append(w.open, o)
}

// expected are the events that a watch has to bring.
func (w *world) expected(o *openWatch) []seen {
	var want []seen
	for _, event := range w.events {
		if event.rev > o.from && strings.HasPrefix(event.name, o.scope) {
			want = append(want, event)
		}
	}
	return want
}

// readUpTo reads and checks a watch's next events.
func (w *world) readUpTo(t *rapid.T, o *openWatch, n int) {
	want := w.expected(o)[:n]
	o.got = append(o.got, read(t, o.w, n-len(o.got))...)
	if !slices.Equal(o.got, want) {
		t.Fatalf("%q on %s from %d brought\n%v, want\n%v", o.scope, o.where, o.from, o.got, want)
	}
}

// readOn takes some of what a watch has to bring. Then it may resume it on another
// peer, from the revision of the last event read.
func (w *world) readOn(t *rapid.T) {
	if len(w.open) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.open)-1).Draw(t, "watch")
	o := w.open[i]
	n := rapid.IntRange(len(o.got), len(w.expected(o))).Draw(t, "read up to")
	w.readUpTo(t, o, n)
	if n > 0 && rapid.Bool().Draw(t, "resume") {
		o.w.Stop()
		w.open = slices.Delete(w.open, i, i+1)
		w.watchFrom(t, o.scope, o.got[n-1].rev)
	}
}

// list reads any state that ever was, exactly, in pages from changing peers.
func (w *world) list(t *rapid.T) {
	at := w.drawRevision(t)
	names, key := drawScope(t)
	options := kstorage.ListOptions{
		ResourceVersion: at.String(), ResourceVersionMatch: metav1.ResourceVersionMatchExact,
		Recursive: true, Predicate: kstorage.Everything,
	}
	if rapid.IntRange(0, 3).Draw(t, "newest") == 0 {
		at = math.MaxInt64
		options.ResourceVersion, options.ResourceVersionMatch = "", ""
	}
	options.Predicate.Limit = rapid.Int64Range(0, 3).Draw(t, "limit")
	got := map[string]store.Revision{}
	last := ""
	for {
		list := &example.PodList{}
		where := drawPeer(t)
		if err := w.peers[where].GetList(w.ctx, key, options, list); err != nil {
			t.Fatalf("list %s at %d on %s: %v", key, at, where, err)
		}
		for i := range list.Items {
			pod := &list.Items[i]
			name := pod.Namespace + "/" + pod.Name
			if name <= last {
				t.Fatalf("%s comes after %s", name, last)
			}
			last = name
			got[name] = revisionOf(t, pod)
		}
		if list.Continue == "" {
			break
		}
		options.Predicate.Continue = list.Continue
		options.ResourceVersion, options.ResourceVersionMatch = "", ""
	}
	want := w.state(at)
	maps.DeleteFunc(want, func(name string, _ store.Revision) bool { return !strings.HasPrefix(name, names) })
	if !maps.Equal(got, want) {
		t.Fatalf("list of %s at %d has\n%v, want\n%v", key, at, got, want)
	}
}

// finish reads all watches to their end.
func (w *world) finish(t *rapid.T) {
	for _, o := range w.open {
		w.readUpTo(t, o, len(w.expected(o)))
		select {
		case event := <-o.w.ResultChan():
			t.Fatalf("%q on %s: %v after the last event", o.scope, o.where, see(t, event))
		default:
		}
		o.w.Stop()
	}
}

// Whatever is written where, lists at any revision, in pages over several peers, and
// watches from any event, resumed on any peer, agree with one history.
func TestEveryPeerTellsOneHistory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, store.Limits{})
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		prefix := withPrefix(fmt.Sprintf("/history-%d", prefixes.Add(1)))
		w := &world{ctx: ctx, peers: map[string]*pods{}, last: map[string]store.Revision{}}
		for name, host := range map[string]*consensus.Host{"leader": c.leader, "follower": c.follower, "without": c.without} {
			w.peers[name] = newPods(t, host, severalShards, prefix)
		}
		w.start = listRevision(t, w.peers["leader"])
		rt.Repeat(map[string]func(*rapid.T){
			"write": w.write, "write more": w.write, "watch": w.watch, "read": w.readOn, "list": w.list,
		})
		w.finish(rt)
	})
}
