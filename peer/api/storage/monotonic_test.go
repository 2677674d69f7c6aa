package storage

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus/store"
)

// A list not older than the revision of another shard names at least that, and the next list names no less, although nothing has changed.
func TestRevisionsOfIdleShardsDoNotGoBack(t *testing.T) {
	t.Parallel()
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	a, b := twoNamespaces(t, severalShards)
	list := func(key, version string, recursive bool) store.Revision {
		t.Helper()
		found := &example.PodList{}
		opts := kstorage.ListOptions{Recursive: recursive, Predicate: kstorage.Everything, ResourceVersion: version}
		if version != "" {
			opts.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
		}
		if err := p.GetList(t.Context(), key, opts, found); err != nil {
			t.Fatal(err)
		}
		revision, err := store.ParseRevision(found.ResourceVersion)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	for i, busy := range []string{a, b} {
		idle := []string{b, a}[i]
		p.create(t, idle, "idle")
		p.create(t, busy, "busy")
		all := list("/pods/", "", true)
		for _, recursive := range []bool{true, false} {
			key := "/pods/" + idle + "/"
			if !recursive {
				key = podKey(idle, "idle")
			}
			notOlder := list(key, all.String(), recursive)
			if now := list(key, "", recursive); notOlder < all || now < notOlder {
				t.Errorf("all namespaces were listed at %s, then %s at %s, then at %s", all, key, notOlder, now)
			}
		}
	}
}
