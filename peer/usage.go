package peer

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/runtime/stats"
)

// usagePath is where a node tells, on serviceNode, what it and its pods use.
const usagePath = "/usage"

const (
	// usageKept is how long another node's answer is given again: it changes only every stats.UseInterval.
	usageKept = stats.UseInterval / 2
	// usageTimeout bounds one question. Who does not answer has no figures.
	usageTimeout = 2 * time.Second
	// usageParallel bounds the nodes asked at once.
	usageParallel = 32
)

// usages asks nodes for what they use and keeps the answers for a moment.
type usages struct {
	ask func(ctx context.Context, node string) (stats.Use, error)

	lock sync.Mutex
	kept map[string]keptUse
}

type keptUse struct {
	use stats.Use
	at  time.Time
}

// of returns what the named nodes use; those that do not answer are left out.
func (u *usages) of(ctx context.Context, nodes []string) map[string]stats.Use {
	var lock sync.Mutex
	found := map[string]stats.Use{}
	var group errgroup.Group
	group.SetLimit(usageParallel)
	for _, node := range nodes {
		group.Go(func() error {
			if use, ok := u.one(ctx, node); ok {
				lock.Lock()
				defer lock.Unlock()
				found[node] = use
			}
			return nil
		})
	}
	_ = group.Wait() // nobody fails
	return found
}

func (u *usages) one(ctx context.Context, node string) (stats.Use, bool) {
	now := time.Now()
	u.lock.Lock()
	kept, ok := u.kept[node]
	u.lock.Unlock()
	if ok && now.Sub(kept.at) < usageKept {
		return kept.use, true
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	use, err := u.ask(ctx, node)
	if err != nil || use.At.IsZero() {
		return use, false
	}
	u.lock.Lock()
	defer u.lock.Unlock()
	if u.kept == nil {
		u.kept = map[string]keptUse{}
	}
	for name, old := range u.kept {
		if now.Sub(old.at) > time.Minute {
			delete(u.kept, name)
		}
	}
	u.kept[node] = keptUse{use, now}
	return use, true
}

// askUsage asks a node by its name.
func (p *Peer) askUsage(ctx context.Context, node string) (use stats.Use, err error) {
	if node == p.self.Name {
		return p.node.stats.Use(), nil
	}
	for _, member := range p.members.Members() {
		if member.Name == node {
			return use, p.nodes.post(ctx, member.PeerID, usagePath, struct{}{}, &use)
		}
	}
	return use, errUnknownNode(node)
}

// measure keeps this node's figures until ctx ends, and makes room where they call for it.
func (n *node) measure(ctx context.Context) error {
	ticker := time.NewTicker(stats.UseInterval)
	defer ticker.Stop()
	for {
		if err := n.stats.SampleUse(ctx); err != nil && ctx.Err() == nil {
			n.log.Debug("what runs here could not be measured", "error", err)
		}
		n.collectImages(ctx, time.Now())
		n.relieve(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
