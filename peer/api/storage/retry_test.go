package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// Answers are lost at random moments while a peer without replicas commits
// transactions of three objects. Each is committed again until its outcome is known,
// and is applied exactly once: a watch sees every change once, the objects of a
// transaction in order and next to one another, at the revisions that the commit told.
func TestCommitsAreSafeToRepeat(t *testing.T) {
	t.Parallel()
	network := consensustest.NewNetwork()
	change := func(c *consensus.Config) { c.DataShards = severalShards.shards }
	with := network.Open(t, "peer-a", t.TempDir(), change)
	consensustest.Found(t, with)
	without := network.Open(t, "peer-b", t.TempDir(), change)
	here := newPods(t, with, severalShards, withPrefix("/repeat"))
	there := newPods(t, without, severalShards, withPrefix("/repeat"), func(c *Config) { c.Patience = 150 * time.Millisecond })
	watching := watchAll(t, here, listRevision(t, here))

	ctx, stop := context.WithTimeout(t.Context(), 40*time.Second)
	defer stop()
	go loseAnswers(ctx, network)
	first, second := twoNamespaces(t, severalShards)
	objects := map[string][]*example.Pod{}
	unknown := 0
	for round := 0; round < 24 || unknown < 3; round++ {
		namespace := []string{first, second}[round%2]
		tx := NewTransaction()
		changed := collectThree(ctx, t, there, tx, namespace, round, objects[namespace])
		for done := false; !done; {
			_, err := tx.Commit(ctx)
			switch {
			case ctx.Err() != nil:
				t.Fatalf("round %d, %d unknown outcomes: %v", round, unknown, err)
			case err == nil:
				done = true
			case apierrors.IsTimeout(err):
				unknown++
			case apierrors.IsServiceUnavailable(err): // nothing was written, and this one is spent
				tx = NewTransaction()
				changed = collectThree(ctx, t, there, tx, namespace, round, objects[namespace])
			default:
				t.Fatalf("round %d: %v", round, err)
			}
		}
		objects[namespace] = changed
		for i, event := range read(t, watching, len(changed)) {
			if pod := changed[i]; event.rev != revisionOf(t, pod) || event.name != namespace+"/"+pod.Name {
				t.Fatalf("round %d, event %d: %v, want %s at %s", round, i, event, pod.Name, pod.ResourceVersion)
			}
		}
	}
}

// collectThree creates three pods, or changes those that exist.
func collectThree(ctx context.Context, t *testing.T, p *pods, tx *Transaction, namespace string, round int, existing []*example.Pod) []*example.Pod {
	t.Helper()
	ctx = WithTransaction(ctx, tx)
	changed := make([]*example.Pod, 3)
	for i := range changed {
		changed[i] = &example.Pod{}
		name := fmt.Sprint("p", i)
		var err error
		if existing == nil {
			err = p.Create(ctx, podKey(namespace, name), newPod(namespace, name), changed[i], 0)
		} else {
			label := func(obj runtime.Object) (runtime.Object, error) {
				obj.(*example.Pod).Labels = map[string]string{"round": fmt.Sprint(round)}
				return obj, nil
			}
			err = p.GuaranteedUpdate(ctx, podKey(namespace, name), changed[i], false, nil, kstorage.SimpleUpdate(label), existing[i].DeepCopy())
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	return changed
}

// loseAnswers makes the peer without replicas deaf now and then.
func loseAnswers(ctx context.Context, network *consensustest.Network) {
	for ctx.Err() == nil {
		network.Heal()
		if pause(ctx, time.Duration(rand.IntN(300))*time.Millisecond) == nil {
			network.Deafen("peer-b", "peer-a")
		}
		pause(ctx, time.Duration(rand.IntN(150))*time.Millisecond) //nolint:errcheck // the loop asks
	}
}
