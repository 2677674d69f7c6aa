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

// A bookmark or a list at the revision of any change of a transaction but the last
// would show half of it; on a peer without a replica, too.
func TestRevisionsInsideOfTransactionsAreKnown(t *testing.T) {
	t.Parallel()
	with, without := twoPeers(t)
	p, far := newPods(t, with, severalShards), newPods(t, without, severalShards)
	a, b := twoNamespaces(t, severalShards)
	p.create(t, a, "before")
	tx := NewTransaction()
	var outs []*example.Pod
	for i := range 3 {
		outs = append(outs, &example.Pod{})
		if err := p.Create(WithTransaction(t.Context(), tx), podKey(a, fmt.Sprint(i)), newPod(a, fmt.Sprint(i)), outs[i], 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.create(t, a, "after")
	p.create(t, b, "elsewhere")
	shards, err := p.shards.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, out := range outs {
		rev := revisionOf(t, out)
		if err := p.closeAll(t.Context(), shards, rev); err != nil {
			t.Fatal(err)
		}
		for name, s := range map[string]*pods{"with replicas": p, "without": far} {
			if cut := s.cuts(t.Context(), shards, rev); cut != (i < 2) {
				t.Errorf("%s: change %d of 3, at %d, is inside of its transaction: %v", name, i+1, rev, cut)
			}
		}
	}
}
