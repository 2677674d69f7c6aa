package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/consensus"
	"shoal/placement"
)

// watchdog is what the machine's watchdog is told of the lease. Once it is told that this peer restarts, and for how long it is waited for,
// renewals say nothing any more: this process goes on for a moment, and its next renewal would take that patience back.
type watchdog struct {
	runtime Runtime

	lock       sync.Mutex
	restarting bool
}

func (w *watchdog) renewed(at time.Time) error {
	w.lock.Lock()
	defer w.lock.Unlock()
	if w.restarting {
		return nil
	}
	return w.runtime.Renewed(at)
}

// restart is called when the restart has been announced.
func (w *watchdog) restart(until time.Time) error {
	w.lock.Lock()
	defer w.lock.Unlock()
	if err := w.runtime.Restarting(until); err != nil {
		return err
	}
	w.restarting = true
	return nil
}

func (r *renewer) renewed() time.Time {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.last
}

// fence stops what must never run twice (D8).
func (n *node) fence(ctx context.Context) {
	n.bound.doubt()
	ctx, cancel := context.WithTimeout(ctx, fenceGrace+time.Second)
	defer cancel()
	if err := n.agent.Fence(ctx, mustNotRunTwice, fenceGrace); err != nil {
		n.log.Error("pods that must not run twice are still running", "error", err)
	}
}

// lift lets what must not run twice start here, one shard's pods after the other's, until all may or ctx ends: not before this node has seen
// everything that was decided while it could not be heard, since a pod that was replaced meanwhile must not start here on an old picture. A
// shard without a quorum holds up nobody but its own.
func (n *node) lift(ctx context.Context) {
	var taken time.Time
	begun, warned := time.Now(), false
	err := n.untilDone(ctx, "what became of this node's pods is not known yet", func(ctx context.Context) error {
		err := n.liftOnce(ctx, &taken)
		if err != nil && !warned && time.Since(begun) > confirmPatience {
			n.log.Warn("pods that must not run twice wait here, since it cannot be confirmed that they are still this node's", "error", err)
			warned = true
		}
		return err
	})
	if err == nil {
		n.bound.trustAll()
	}
}

// liftOnce trusts the shards that can be confirmed before ctx ends. Its error says why others cannot.
func (n *node) liftOnce(ctx context.Context, taken *time.Time) error {
	if err := n.taken(ctx, taken); err != nil {
		return err
	}
	shards, err := n.peer.host.DataShards(ctx)
	if err != nil {
		return err
	}
	failed := make([]error, len(shards))
	var each sync.WaitGroup
	for i, shard := range shards {
		if n.bound.trusts(shard) {
			continue
		}
		each.Go(func() {
			if failed[i] = n.caughtUp(ctx, shard); failed[i] == nil {
				n.bound.trust(shard)
			}
		})
	}
	each.Wait()
	return errors.Join(failed...)
}

// takenFor is how long this node must have stood in the store as one that is not lost, before what must not run twice starts here again.
// Leaders that saw it lost a moment ago have committed their evictions by then, or see it as it is.
const takenFor = time.Second

// taken tells, as an error, that others may still take this node for lost and replace its pods. It keeps in since from when on the store has
// had this node as not lost; zero while it has not.
func (n *node) taken(ctx context.Context, since *time.Time) error {
	kv, found, _, err := n.peer.host.Get(ctx, consensus.MetaShard, nodePrefix+n.peer.self.Name, consensus.Linearizable)
	if err != nil {
		return err
	}
	var stored object
	if found {
		if stored, err = decode(kv.Value, kv.Mod); err != nil {
			return err
		}
	}
	if self, ok := stored.(*corev1.Node); !ok || (&placement.Node{Object: self}).Lost() {
		*since = time.Time{}
		n.statusChanged()
		return errors.New("the node still counts as lost")
	}
	if since.IsZero() {
		*since = time.Now()
	}
	if took := time.Since(*since); took < takenFor {
		return fmt.Errorf("the node counts as lost no more since %s only", took.Round(time.Millisecond))
	}
	return nil
}
