package storage

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"
)

// While transactions of several objects are committed to one shard and single writes
// to another, a list of all namespaces shows all of a transaction or nothing.
func TestListsShowWholeTransactions(t *testing.T) {
	t.Parallel()
	p := newPods(t, sharedHost(t, severalShards), severalShards)
	a, b := twoNamespaces(t, severalShards)
	const objects = 40
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var writers sync.WaitGroup
	writers.Go(func() {
		for round := 0; ctx.Err() == nil; round++ {
			tx := NewTransaction()
			for i := range objects {
				name := fmt.Sprintf("whole-%d-%d", round, i)
				if err := p.Create(WithTransaction(t.Context(), tx), podKey(a, name), newPod(a, name), nil, 0); err != nil {
					t.Error(err)
				}
			}
			if _, err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for n := range 4 {
		writers.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				p.create(t, b, fmt.Sprintf("single-%d-%d", n, round))
			}
		})
	}
	lists := 0
	for ctx.Err() == nil {
		list := &example.PodList{}
		if err := p.GetList(t.Context(), "/pods/", kstorage.ListOptions{Recursive: true, Predicate: kstorage.Everything}, list); err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for _, pod := range list.Items {
			if rest, ok := strings.CutPrefix(pod.Name, "whole-"); ok {
				round, _, _ := strings.Cut(rest, "-")
				count[round]++
			}
		}
		lists++
		for round, n := range count {
			if n != objects {
				t.Errorf("list %d at %s shows %d of %d objects of transaction %s", lists, list.ResourceVersion, n, objects, round)
			}
		}
	}
	writers.Wait()
	if lists < 5 {
		t.Errorf("%d lists are too few to prove anything", lists)
	}
}
