package storage

import (
	"context"
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus/store"
)

// twoNamespaces are namespaces of different shards.
func twoNamespaces(t *testing.T, top topology) (string, string) {
	t.Helper()
	names := []string{"a", "b", "c", "d", "e", "f", "g"}
	for _, name := range names[1:] {
		if top.locate(name) != top.locate(names[0]) {
			return names[0], name
		}
	}
	t.Fatal("all namespaces are in one shard")
	return "", ""
}

func (p *pods) fetch(ctx context.Context, t *testing.T, namespace, name string) *example.Pod {
	t.Helper()
	pod := &example.Pod{}
	if err := p.Get(ctx, podKey(namespace, name), kstorage.GetOptions{}, pod); err != nil {
		t.Fatalf("get %s/%s: %v", namespace, name, err)
	}
	return pod
}

func (p *pods) absent(ctx context.Context, t *testing.T, namespace, name string) {
	t.Helper()
	if err := p.Get(ctx, podKey(namespace, name), kstorage.GetOptions{}, &example.Pod{}); !kstorage.IsNotFound(err) {
		t.Errorf("get %s/%s: %v, want not found", namespace, name, err)
	}
}

func TestTransaction(t *testing.T) {
	host := sharedHost(t, severalShards)
	for name, test := range map[string]func(t *testing.T, s *pods){
		"one log entry per shard":     transactionIsOneEntry,
		"reads see pending writes":    transactionReadsItself,
		"conflicts are named":         transactionConflicts,
		"stale writes are refused":    transactionRefusesStale,
		"requirements are conditions": transactionRequires,
		"is committed once":           transactionOnce,
	} {
		t.Run(name, func(t *testing.T) { test(t, newPods(t, host, severalShards)) })
	}
}

func transactionIsOneEntry(t *testing.T, s *pods) {
	a, b := twoNamespaces(t, severalShards)
	old := s.create(t, a, "old")
	tx := NewTransaction()
	ctx := WithTransaction(t.Context(), tx)
	first, second, other := &example.Pod{}, &example.Pod{}, &example.Pod{}
	for _, c := range []struct {
		namespace, name string
		out             *example.Pod
	}{{a, "first", first}, {a, "second", second}, {b, "other", other}} {
		if err := s.Create(ctx, podKey(c.namespace, c.name), newPod(c.namespace, c.name), c.out, 0); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := s.remove(ctx, a, "old")
	if err != nil {
		t.Fatal(err)
	}
	s.absent(t.Context(), t, a, "first") // nothing is written yet
	watching, err := s.Watch(t.Context(), "/pods/"+a, kstorage.ListOptions{ResourceVersion: old.ResourceVersion, Recursive: true, Predicate: kstorage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()

	results, err := tx.Commit(t.Context())
	if err != nil || len(results) != 2 {
		t.Fatalf("%d results, %v; want two shards", len(results), err)
	}
	if results[0].Objects != 3 || results[1].Objects != 1 {
		t.Errorf("objects per shard: %+v", results)
	}
	last := revisionOf(t, old)
	for i, want := range []*example.Pod{first, second, gone} {
		if rev := revisionOf(t, want); rev <= last || rev > results[0].Revision {
			t.Errorf("%s has revision %d, after %d, in a commit at %d", want.Name, rev, last, results[0].Revision)
		}
		last = revisionOf(t, want)
		event := <-watching.ResultChan()
		if got := event.Object.(*example.Pod); got.Name != want.Name || got.ResourceVersion != want.ResourceVersion {
			t.Errorf("event %d is %s of %s at %s, want %s at %s", i, event.Type, got.Name, got.ResourceVersion, want.Name, want.ResourceVersion)
		}
	}
	if got := s.fetch(t.Context(), t, b, "other"); got.ResourceVersion != other.ResourceVersion {
		t.Errorf("other is at %s, the transaction said %s", got.ResourceVersion, other.ResourceVersion)
	}
}

func transactionReadsItself(t *testing.T, s *pods) {
	tx := NewTransaction()
	ctx := WithTransaction(t.Context(), tx)
	if err := s.Create(ctx, podKey("a", "p"), newPod("a", "p"), &example.Pod{}, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, podKey("a", "p"), newPod("a", "p"), nil, 0); !kstorage.IsExist(err) {
		t.Errorf("create twice: %v, want exists", err)
	}
	pending := s.fetch(ctx, t, "a", "p")
	if revisionOf(t, pending) < firstProvisional {
		t.Errorf("pending at %s, which could be a real revision", pending.ResourceVersion)
	}
	updated, err := s.label(ctx, "a", "p", "x")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.fetch(ctx, t, "a", "p"); got.Labels["v"] != "x" {
		t.Errorf("labels %v after the update", got.Labels)
	}
	if _, err := s.remove(ctx, "a", "p"); err != nil {
		t.Fatal(err)
	}
	s.absent(ctx, t, "a", "p")
	if err := s.Create(ctx, podKey("a", "p"), newPod("a", "p"), updated, 0); err != nil {
		t.Fatal(err)
	}
	if tx.Len() != 1 {
		t.Errorf("%d objects to write, want 1", tx.Len())
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	stored := s.fetch(t.Context(), t, "a", "p")
	if stored.Labels["v"] != "" || stored.ResourceVersion != updated.ResourceVersion {
		t.Errorf("stored with labels %v at %s, want the last write at %s", stored.Labels, stored.ResourceVersion, updated.ResourceVersion)
	}
}

func transactionConflicts(t *testing.T, s *pods) {
	a, b := twoNamespaces(t, severalShards)
	s.create(t, a, "changed")
	s.create(t, a, "deleted")
	s.create(t, b, "fine")
	tx := NewTransaction()
	ctx := WithTransaction(t.Context(), tx)
	for _, name := range []string{"changed", "deleted"} {
		if _, err := s.label(ctx, a, name, "mine"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.label(ctx, b, "fine", "mine"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"taken", "free"} {
		if err := s.Create(ctx, podKey(a, name), newPod(a, name), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.label(t.Context(), a, "changed", "theirs"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.remove(t.Context(), a, "deleted"); err != nil {
		t.Fatal(err)
	}
	s.create(t, a, "taken")

	_, err := tx.Commit(t.Context())
	var conflict *ConflictError
	if !errors.As(err, &conflict) || len(conflict.Objects) != 3 {
		t.Fatalf("commit: %v, want three conflicts", err)
	}
	for i, want := range []struct {
		name string
		is   func(error) bool
	}{{"changed", apierrors.IsConflict}, {"deleted", apierrors.IsConflict}, {"taken", apierrors.IsAlreadyExists}} {
		if got := conflict.Objects[i]; got.Name != want.name || got.Namespace != a || !want.is(got.Err) {
			t.Errorf("conflict %d: %s/%s: %v", i, got.Namespace, got.Name, got.Err)
		}
	}
	s.absent(t.Context(), t, a, "free")
	if got := s.fetch(t.Context(), t, a, "changed"); got.Labels["v"] != "theirs" {
		t.Errorf("a refused write was applied: %v", got.Labels)
	}
	if got := s.fetch(t.Context(), t, b, "fine"); got.Labels["v"] != "mine" {
		t.Errorf("the other shard's write is missing: %v", got.Labels)
	}
}

func transactionRefusesStale(t *testing.T, s *pods) {
	stored := s.create(t, "a", "p")
	tx := NewTransaction()
	ctx := WithTransaction(t.Context(), tx)
	if _, err := s.label(ctx, "a", "p", "1"); err != nil {
		t.Fatal(err)
	}
	// a suggestion from before the pending write is judged again, on that write
	var judged []string
	err := s.GuaranteedUpdate(ctx, podKey("a", "p"), &example.Pod{}, false, nil, kstorage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		pod := obj.(*example.Pod)
		judged = append(judged, pod.Labels["v"])
		pod.Labels = map[string]string{"v": pod.Labels["v"] + "2"}
		return pod, nil
	}), stored)
	if err != nil {
		t.Fatal(err)
	}
	if len(judged) != 2 || judged[0] != "" || judged[1] != "1" {
		t.Errorf("judged %q, want the suggestion and then the pending write", judged)
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.fetch(t.Context(), t, "a", "p"); got.Labels["v"] != "12" {
		t.Errorf("stored %v", got.Labels)
	}
}

func transactionRequires(t *testing.T, s *pods) {
	guard := s.create(t, "a", "guard")
	commit := func(rev store.Revision) error {
		tx := NewTransaction()
		if err := tx.Require(s.Storage, podKey("a", "guard"), rev); err != nil {
			t.Fatal(err)
		}
		name := rev.String()
		if err := s.Create(WithTransaction(t.Context(), tx), podKey("a", name), newPod("a", name), nil, 0); err != nil {
			t.Fatal(err)
		}
		_, err := tx.Commit(t.Context())
		return err
	}
	if err := commit(revisionOf(t, guard)); err != nil {
		t.Errorf("with the guard as it is: %v", err)
	}
	if err := commit(revisionOf(t, guard) + store.Tick); !apierrors.IsConflict(err) {
		t.Errorf("with a guard of another revision: %v, want a conflict", err)
	}
	if err := commit(0); !apierrors.IsAlreadyExists(err) {
		t.Errorf("with no guard: %v, want already exists", err)
	}
}

func transactionOnce(t *testing.T, s *pods) {
	tx := NewTransaction()
	ctx := WithTransaction(t.Context(), tx)
	if results, err := tx.Commit(t.Context()); err != nil || len(results) != 0 {
		t.Errorf("empty commit: %v, %v", results, err)
	}
	if _, err := tx.Commit(t.Context()); err == nil {
		t.Error("committed twice")
	}
	if err := s.Create(ctx, podKey("a", "late"), newPod("a", "late"), nil, 0); err == nil {
		t.Error("write after the commit")
	}
}
