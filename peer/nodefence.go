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
	"shoal/runtime/pods"
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
	n.takenSince = time.Time{}
	ctx, cancel := context.WithTimeout(ctx, fenceGrace+time.Second)
	defer cancel()
	identity := func(pod *corev1.Pod) bool { return pods.NeedsIdentity(pod, n.claimModes) }
	if err := n.agent.Fence(ctx, identity, fenceGrace); err != nil {
		n.log.Error("pods that must not run twice are still running", "error", err)
	}
}

// unfenceTimeout bounds one attempt to catch up.
const unfenceTimeout = 2 * time.Second

// unfence lets fenced pods run again, but not before this node has seen everything that was decided while it was cut off: a pod that was
// replaced meanwhile must not start here on an old picture.
func (n *node) unfence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, unfenceTimeout)
	defer cancel()
	if err := n.taken(ctx); err != nil {
		return err
	}
	for _, shard := range n.peer.dataShards() {
		now, err := n.peer.host.Close(ctx, shard, n.peer.host.Now())
		if err != nil {
			return err
		}
		for n.followed.reached(shard, podPrefix) < now {
			select {
			case <-ctx.Done():
				return fmt.Errorf("shard %d: %w", shard, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	for n.followed.waiting() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	n.agent.Unfence()
	return nil
}

// takenFor is how long this node must have stood in the store as one that is not lost, before what must not run twice starts here again.
// Leaders that saw it lost a moment ago have committed their evictions by then, or see it as it is.
const takenFor = time.Second

// taken tells, as an error, that others may still take this node for lost and replace its pods.
func (n *node) taken(ctx context.Context) error {
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
		n.takenSince = time.Time{}
		n.statusChanged()
		return errors.New("the node still counts as lost")
	}
	if n.takenSince.IsZero() {
		n.takenSince = time.Now()
	}
	if since := time.Since(n.takenSince); since < takenFor {
		return fmt.Errorf("the node counts as lost no more since %s only", since.Round(time.Millisecond))
	}
	return nil
}
