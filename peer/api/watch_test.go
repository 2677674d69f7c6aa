package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

func configMap(namespace, name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func TestWatch(t *testing.T) {
	namespace(t, "watched")
	maps := admin.CoreV1().ConfigMaps("watched")
	list := must(maps.List(t.Context(), metav1.ListOptions{}))(t)
	w := must(maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(t)
	defer w.Stop()
	object := must(maps.Create(t.Context(), configMap("watched", "a"), metav1.CreateOptions{}))(t)
	object.Data = map[string]string{"key": "value"}
	must(maps.Update(t.Context(), object, metav1.UpdateOptions{}))(t)
	if err := maps.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	last := ""
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
		event := nextEvent(t, w)
		got := event.Object.(*corev1.ConfigMap)
		if event.Type != want || got.Name != "a" || got.ResourceVersion <= last {
			t.Errorf("event %s %s at %s after %s, want %s", event.Type, got.Name, got.ResourceVersion, last, want)
		}
		last = got.ResourceVersion
	}
}

func nextEvent(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case event, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return event
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
	}
	return watch.Event{}
}

// TestWatchList checks what informers of this version do instead of listing.
func TestWatchList(t *testing.T) {
	namespace(t, "streamed")
	for i := range 3 {
		must(admin.CoreV1().ConfigMaps("streamed").Create(t.Context(), configMap("streamed", fmt.Sprint("m", i)), metav1.CreateOptions{}))(t)
	}
	yes := true
	w := must(admin.CoreV1().ConfigMaps("streamed").Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	}))(t)
	defer w.Stop()
	added := 0
	for {
		event := nextEvent(t, w)
		if event.Type == watch.Added {
			added++
			continue
		}
		if event.Type != watch.Bookmark || event.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
			t.Fatalf("event %+v", event)
		}
		break
	}
	if added != 3 {
		t.Errorf("%d objects before the bookmark", added)
	}
}

// TestInformers follow objects of all namespaces through both kinds of client.
func TestInformers(t *testing.T) {
	namespace(t, "informed")
	inside := must(kubernetes.NewForConfig(shared.Server.Loopback()))(t)
	for name, client := range map[string]kubernetes.Interface{"outside": admin, "inside": inside} {
		ctx, cancel := context.WithCancel(t.Context())
		factory := informers.NewSharedInformerFactory(client, 0)
		lister := factory.Core().V1().ConfigMaps().Lister()
		factory.Start(ctx.Done())
		if !cache.WaitForCacheSync(ctx.Done(), factory.Core().V1().ConfigMaps().Informer().HasSynced) {
			t.Fatalf("%s: not synced", name)
		}
		must(admin.CoreV1().ConfigMaps("informed").Create(ctx, configMap("informed", name), metav1.CreateOptions{}))(t)
		eventually(t, func() error {
			_, err := lister.ConfigMaps("informed").Get(name)
			return err
		})
		cancel()
		factory.Shutdown()
	}
}

func TestChunkedLists(t *testing.T) {
	namespace(t, "chunked")
	maps := admin.CoreV1().ConfigMaps("chunked")
	for i := range 10 {
		must(maps.Create(t.Context(), configMap("chunked", fmt.Sprintf("m%02d", i)), metav1.CreateOptions{}))(t)
	}
	seen, next := map[string]bool{}, ""
	for chunk := 0; ; chunk++ {
		list := must(maps.List(t.Context(), metav1.ListOptions{Limit: 4, Continue: next}))(t)
		for _, item := range list.Items {
			seen[item.Name] = true
		}
		if chunk == 0 {
			if list.RemainingItemCount == nil || *list.RemainingItemCount < 6 {
				t.Errorf("remaining %v", list.RemainingItemCount)
			}
			// a write between two chunks must not show
			must(maps.Create(t.Context(), configMap("chunked", "m99"), metav1.CreateOptions{}))(t)
		}
		if next = list.Continue; next == "" {
			break
		}
	}
	if len(seen) != 10 || seen["m99"] {
		t.Errorf("saw %v", seen)
	}
}
