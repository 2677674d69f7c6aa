package peer

import (
	"bytes"
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"shoal/consensus"
	"shoal/consensus/bugs"
)

// followPods tells the agent and the ledger which pods are bound to this node. The first word is the complete set: only then may what
// nobody wants any more be removed.
func (n *node) followPods(ctx context.Context, q *queue, feeds int) error {
	synced := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		}
		if !synced && q.feeds() < feeds {
			continue
		}
		for _, c := range q.take() {
			if pod, ok := c.Object.(*corev1.Pod); ok {
				n.take(pod, c.Gone, synced)
			}
		}
		if !synced {
			synced = true
			all := n.boundPods()
			n.ledger.SetRunning(all)
			n.agent.Set(all)
		}
		q.applied()
	}
}

// followShards follows the pods that may be this node's: what is bound to it has its name in it. The others, which are most of a cluster's
// objects, are not even decoded.
func (n *node) followShards(ctx context.Context, group *errgroup.Group, q *queue, shards []uint64) {
	name := []byte(n.peer.self.Name)
	for _, shard := range shards {
		f := &feed{
			host: n.peer.host, shard: shard, prefix: podPrefix, log: n.log, apply: q.from(shard, podPrefix),
			may: func(value []byte) bool { return bytes.Contains(value, name) },
		}
		group.Go(func() error { return f.Run(ctx) })
	}
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

func (n *node) take(pod *corev1.Pod, gone, tell bool) {
	n.lock.Lock()
	_, had := n.bound[pod.UID]
	mine := pod.Spec.NodeName == n.peer.self.Name && !gone
	if mine {
		n.bound[pod.UID] = pod
	} else {
		delete(n.bound, pod.UID)
	}
	n.lock.Unlock()
	switch {
	case !tell:
	case mine:
		n.ledger.Upsert(pod)
		n.agent.Upsert(pod)
	case had:
		if !bugs.On(bugs.KeepClaims) {
			n.ledger.Remove(pod.UID)
		}
		n.agent.Remove(pod.UID)
	}
}

func (n *node) boundPods() []*corev1.Pod {
	n.lock.Lock()
	defer n.lock.Unlock()
	all := make([]*corev1.Pod, 0, len(n.bound))
	for _, pod := range n.bound {
		all = append(all, pod)
	}
	return all
}

// claimModes is asked while this peer is cut off, so it must not ask anybody: any claim may be one of a single writer.
func (n *node) claimModes(_, _ string) []corev1.PersistentVolumeAccessMode {
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
