package storage

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/polling"
)

// While shards have no quorum, reads that may be stale answer from local replicas,
// and everything else says which shard cannot and why.
func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	network := consensustest.NewNetwork()
	a, _ := twoVoters(t, network)
	p := newPods(t, a, severalShards, func(c *Config) { c.Patience = 300 * time.Millisecond })
	first, second := twoNamespaces(t, severalShards)
	p.create(t, first, "p")
	p.create(t, second, "p")
	watching := watchAll(t, p, listRevision(t, p))
	network.Cut("peer-a", "peer-b")

	unavailable := func(what string, err error) {
		t.Helper()
		if !apierrors.IsServiceUnavailable(err) && !apierrors.IsTimeout(err) || !strings.Contains(err.Error(), "shard ") {
			t.Errorf("%s without quorum: %v", what, err)
		}
	}
	unavailable("create", p.Create(t.Context(), podKey(first, "q"), newPod(first, "q"), nil, 0))
	unavailable("get", p.Get(t.Context(), podKey(first, "p"), kstorage.GetOptions{}, &example.Pod{}))
	everything := kstorage.ListOptions{Recursive: true, Predicate: kstorage.Everything}
	unavailable("list", p.GetList(t.Context(), "/pods/", everything, &example.PodList{}))

	if err := p.Get(t.Context(), podKey(first, "p"), kstorage.GetOptions{ResourceVersion: "0"}, &example.Pod{}); err != nil {
		t.Errorf("stale get: %v", err)
	}
	everything.ResourceVersion = "0"
	for prefix, want := range map[string]int{"/pods/": 2, "/pods/" + first: 1} {
		list := &example.PodList{}
		if err := p.GetList(t.Context(), prefix, everything, list); err != nil || len(list.Items) != want || list.ResourceVersion == "" {
			t.Errorf("stale list of %s: %d items, %v; want %d", prefix, len(list.Items), err, want)
		}
	}

	network.Heal()
	created := createEventually(t, p, first, "q")
	if got := read(t, watching, 1)[0]; got.rev != revisionOf(t, created) {
		t.Errorf("the watch goes on with %v, want the creation at %s", got, created.ResourceVersion)
	}

}

// twoVoters are two peers that both have a vote in every shard, the first of which
// was the founder.
func twoVoters(t *testing.T, network *consensustest.Network) (a, b *consensus.Host) {
	t.Helper()
	change := func(c *consensus.Config) { c.DataShards = severalShards.shards }
	a = network.Open(t, "peer-a", t.TempDir(), change)
	consensustest.Found(t, a)
	b = network.Open(t, "peer-b", t.TempDir(), change)
	for shard := range uint64(severalShards.shards + 1) {
		assignment := shardmap.Found(shard, "peer-a", a.DiskID())
		assignment.Replicas = append(assignment.Replicas, shardmap.Replica{Peer: "peer-b", ID: 2, Voter: true})
		assignment.Next = 3
		propose(t.Context(), t, a, consensus.MetaShard, store.Op{Key: shardmap.Key(shard), Value: assignment.Encode()})
	}
	polling.Until(t, 20*time.Millisecond, 20*time.Second, "the second peer votes in every shard", func(context.Context) error {
		votes := 0
		for _, status := range b.Status() {
			if status.Local && status.Voter {
				votes++
			}
		}
		if votes <= severalShards.shards {
			return fmt.Errorf("it does in %d", votes)
		}
		return nil
	})
	return a, b
}

// createEventually creates as soon as the cluster takes writes again.
func createEventually(t *testing.T, p *pods, namespace, name string) *example.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		out := &example.Pod{}
		err := p.Create(ctx, podKey(namespace, name), newPod(namespace, name), out, 0)
		if kstorage.IsExist(err) { // an attempt whose outcome was unknown
			err = p.Get(ctx, podKey(namespace, name), kstorage.GetOptions{}, out)
		}
		if err == nil {
			return out
		}
		if ctx.Err() != nil {
			t.Fatalf("create after the cut healed: %v", err)
		}
	}
}
