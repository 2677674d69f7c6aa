package pods

import (
	"context"
	"errors"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// adopt learns what a predecessor left running and makes a worker for each pod it had a checkpoint of. Nothing is changed on the node.
func (a *Agent) adopt(ctx context.Context) error {
	checkpoints, broken := a.paths.loadCheckpoints()
	if broken != nil {
		a.log.Warn("some checkpoints cannot be read; those pods go on from what the cluster says", "err", broken)
	}
	inventory, err := a.listUntilThere(ctx)
	if err != nil {
		return nil // the agent is being stopped
	}
	networks, err := a.cfg.Network.Existing(ctx)
	if err != nil {
		a.log.Warn("pod networks cannot be listed; they will be attached again", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range checkpoints {
		w := a.workers[c.Pod.UID]
		if w == nil {
			w = a.newWorker(c.Pod)
			a.workers[c.Pod.UID] = w
			w.bind(c.Pod)
			if a.synced { // and not among what should run
				w.remove()
			}
		}
		w.restore(c.Record)
	}
	found := byPod(inventory)
	for uid, w := range a.workers {
		w.adopt(found[uid], networks[uid])
	}
	if len(found) > 0 {
		a.log.Info("adopted what runs", "pods", len(found), "containers", len(inventory.Containers))
	}
	return nil
}

// listUntilThere lists, waiting for a runtime that does not answer yet.
func (a *Agent) listUntilThere(ctx context.Context) (Inventory, error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		inventory, err := a.cfg.Engine.List(ctx)
		if err == nil {
			return inventory, nil
		}
		if wait >= time.Second {
			a.log.Warn("waiting for the container runtime", "err", err)
		}
		select {
		case <-ctx.Done():
			return Inventory{}, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// podInventory is one pod's part of an Inventory.
type podInventory struct {
	sandbox    *Sandbox
	containers []ContainerState
}

func byPod(inventory Inventory) map[types.UID]podInventory {
	out := map[types.UID]podInventory{}
	for i := range inventory.Sandboxes {
		s := &inventory.Sandboxes[i]
		p := out[types.UID(s.PodUID)]
		p.sandbox = s
		out[types.UID(s.PodUID)] = p
	}
	for _, c := range inventory.Containers {
		p := out[types.UID(c.PodUID)]
		p.containers = append(p.containers, c)
		out[types.UID(c.PodUID)] = p
	}
	return out
}

// relist compares the Engine's list with what the workers believe.
func (a *Agent) relist(ctx context.Context) {
	asked := time.Now()
	inventory, err := a.cfg.Engine.List(ctx)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			a.log.Warn("containers cannot be listed", "err", err)
		}
		return
	}
	found := byPod(inventory)
	for _, w := range a.allWorkers() {
		w.compare(found[w.uid], asked)
	}
}

// sweep removes what belongs to pods that this node has not: sandboxes and containers, volumes, networks and files of earlier lives. It
// does nothing before the first Set, since until then nobody knows what is an orphan.
func (a *Agent) sweep(ctx context.Context) {
	a.mu.Lock()
	synced := a.synced
	a.mu.Unlock()
	if !synced {
		return
	}
	orphans, err := a.orphans(ctx)
	if err != nil {
		a.log.Warn("orphans cannot be listed", "err", err)
	}
	for uid := range orphans {
		if err := a.sweepPod(ctx, uid); err != nil {
			a.log.Warn("an orphan cannot be removed", "pod", uid, "err", err)
		}
	}
}

// sweepPod removes a pod's rests, unless it has been bound to this node meanwhile. If that happens now, its worker begins afterwards.
func (a *Agent) sweepPod(ctx context.Context, uid types.UID) error {
	a.mu.Lock()
	if a.workers[uid] != nil {
		a.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	a.sweeping[uid] = done
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.sweeping, uid)
		a.mu.Unlock()
		close(done)
	}()
	if err := a.removeAll(ctx, uid); err != nil {
		return err
	}
	a.log.Info("removed what an earlier life left", "pod", uid)
	return nil
}

func (a *Agent) orphans(ctx context.Context) (map[types.UID]bool, error) {
	uids := map[types.UID]bool{}
	inventory, err := a.cfg.Engine.List(ctx)
	for uid := range byPod(inventory) {
		uids[uid] = true
	}
	networks, netErr := a.cfg.Network.Existing(ctx)
	for uid := range networks {
		uids[uid] = true
	}
	volumes, volErr := a.cfg.Volumes.Existing(ctx)
	for _, uid := range volumes {
		uids[uid] = true
	}
	entries, dirErr := os.ReadDir(a.paths.pods())
	for _, e := range entries {
		uids[types.UID(e.Name())] = true
	}
	a.mu.Lock()
	for uid := range a.workers {
		delete(uids, uid)
	}
	a.mu.Unlock()
	return uids, errors.Join(err, netErr, volErr, dirErr)
}

// teardown removes sandbox with containers, network and volumes of a pod.
func (a *Agent) teardown(ctx context.Context, uid types.UID) error {
	err := errors.Join(a.cfg.Network.Detach(ctx, uid), a.cfg.Engine.RemoveSandbox(ctx, string(uid)))
	if err != nil {
		return err // volumes may still be in use
	}
	return a.cfg.Volumes.Cleanup(ctx, uid)
}

// removeAll is teardown and the pod's files.
func (a *Agent) removeAll(ctx context.Context, uid types.UID) error {
	if err := a.teardown(ctx, uid); err != nil {
		return err
	}
	return os.RemoveAll(a.paths.pod(string(uid)))
}

// removeFiles deletes checkpoint, files and logs of a pod that is over.
func (a *Agent) removeFiles(pod *corev1.Pod) error {
	return errors.Join(os.RemoveAll(a.paths.pod(string(pod.UID))), os.RemoveAll(a.paths.logs(pod)))
}
