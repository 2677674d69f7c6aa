package peer

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"shoal/consensus"
	"shoal/runtime/pods"
)

// confirmPatience is how long this node waits to confirm, with a majority of every shard, which pods are its own, before it gives room away
// by what its own copies say.
const confirmPatience = 30 * time.Second

// followPods brings what the feeds tell to the agent and the ledger.
func (n *node) followPods(ctx context.Context) error {
	complete := make(chan struct{})
	var confirming sync.WaitGroup
	defer confirming.Wait()
	confirming.Go(func() {
		if n.confirmAll(ctx) == nil {
			close(complete)
		}
	})
	patience := time.NewTimer(confirmPatience)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-patience.C:
			n.bound.guess()
			n.log.Warn("which pods are this node's cannot be confirmed, since not every shard has a quorum: none is removed until then")
		case <-complete:
			complete = nil
			patience.Stop()
			n.bound.complete()
		case <-n.followed.wake:
			for _, c := range n.followed.take() {
				if pod, ok := c.Object.(*corev1.Pod); ok {
					n.bound.take(c.Shard, pod, c.Gone)
				}
			}
			n.followed.applied()
		}
	}
}

// confirmAll waits until this node has seen, of each shard, what a majority says of its pods there. Which shards there are is for a majority
// to say too: this peer may know no more yet than those it has replicas of. Error: ctx's.
func (n *node) confirmAll(ctx context.Context) error {
	var shards []uint64
	err := n.untilDone(ctx, "which shards there are is not known yet", func(ctx context.Context) (err error) {
		shards, err = n.peer.host.DataShards(ctx)
		return err
	})
	if err != nil {
		return err
	}
	each, ctx := errgroup.WithContext(ctx)
	for _, shard := range shards {
		each.Go(func() error {
			return n.untilDone(ctx, "which pods are this node's is not confirmed yet", func(ctx context.Context) error {
				return n.caughtUp(ctx, shard)
			})
		})
	}
	return each.Wait()
}

// untilDone tries until it succeeds. Error: ctx's.
func (n *node) untilDone(ctx context.Context, notYet string, try func(ctx context.Context) error) error {
	return wait.PollUntilContextCancel(ctx, retryFeed, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		err := try(ctx)
		if err != nil {
			n.log.Debug(notYet, "error", err)
		}
		return err == nil, nil
	})
}

// askTimeout bounds one attempt to see what a majority says.
const askTimeout = 2 * time.Second

// caughtUp waits until everything has been applied that had been decided about this node's pods in the shard when it was called. Errors:
// ctx's, and those of consensus.Host.Get for a shard without a quorum.
func (n *node) caughtUp(ctx context.Context, shard uint64) error {
	_, _, decided, err := n.peer.host.Get(ctx, shard, podPrefix, consensus.Linearizable)
	if err != nil {
		return err
	}
	if err := poll(ctx, func() bool { return n.followed.reached(shard, podPrefix) >= decided }); err != nil {
		return fmt.Errorf("shard %d: %w", shard, err)
	}
	return poll(ctx, func() bool { return !n.followed.waiting() })
}

// poll waits until something is so. Error: ctx's.
func poll(ctx context.Context, so func() bool) error {
	return wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(context.Context) (bool, error) { return so(), nil })
}

// followShard follows the pods of a shard that may be this node's: what is bound to it has its name in it. The others, which are most of a
// cluster's objects, are not even decoded.
func (n *node) followShard(ctx context.Context, shard uint64) error {
	name := []byte(n.peer.self.Name)
	f := &feed{
		host: n.peer.host, shard: shard, prefix: podPrefix, log: n.log, apply: n.followed.from(shard, podPrefix),
		may: func(value []byte) bool { return bytes.Contains(value, name) },
	}
	return f.Run(ctx)
}

// followContent tells the agent which ConfigMaps or Secrets of a shard change, so that mounted ones are brought up to date at once. Only
// names matter here: Secrets are sealed, and the agent reads what it needs through the API. What is missed while a watch is opened anew
// is caught by the agent's own periodic look.
func (n *node) followContent(ctx context.Context, shard uint64, prefix, kind string) error {
	for ctx.Err() == nil {
		watch, err := n.peer.host.Watch(ctx, shard, consensus.WatchOptions{Prefix: prefix, Stay: true})
		if err == nil {
			for events := range watch.Events() {
				for _, event := range events {
					namespace, name := nameOf(event.Key, prefix)
					n.agent.Changed(kind, namespace, name)
				}
			}
			err = watch.Err()
		}
		if err != nil && ctx.Err() == nil {
			n.log.Debug("following content failed, trying again", "kind", kind, "shard", shard, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryFeed):
		}
	}
	return nil
}

// mustNotRunTwice tells it of a pod.
func mustNotRunTwice(pod *corev1.Pod) bool { return pods.NeedsIdentity(pod, claimModes) }

// claimModes is asked while this peer is cut off, so it must not ask anybody: any claim may be one of a single writer.
func claimModes(_, _ string) []corev1.PersistentVolumeAccessMode {
	return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
}

// dataShards are the numbers of the data shards that this peer knows of.
func (p *Peer) dataShards() []uint64 {
	var data []uint64
	for _, shard := range p.host.Shards() {
		if shard != consensus.MetaShard {
			data = append(data, shard)
		}
	}
	return data
}
