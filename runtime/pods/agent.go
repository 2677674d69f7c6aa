package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// relistEvery is how often the agent compares the Engine's list with what it believes, events or not.
	relistEvery = time.Minute
	// goneFor is how long an Upsert of a pod that ended here is taken for a late message.
	goneFor = time.Minute
)

// Agent runs the pods of one node: it drives Plan for each against the Engine, one worker per pod. Make it with New, tell it what should
// run with Set, Upsert and Remove (before or during Run), and Run it. Ending Run leaves all pods running; the next Agent on the same
// DataDir adopts them.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	paths  paths
	prober prober

	starts chan struct{} // slots for making sandboxes and containers
	pulls  chan struct{} // slots for image pulls

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	workers map[types.UID]*worker
	// sweeping are pods whose rests are being removed; each channel closes with the end of it.
	sweeping map[types.UID]chan struct{}
	gone     map[types.UID]time.Time
	synced   bool // Set was called: what nobody asked for is an orphan
	fence    fence
	running  sync.WaitGroup
}

// fence is the selection of pods that must not start containers now.
type fence struct {
	match func(*corev1.Pod) bool // nil matches none
	stops bool                   // and those that run are stopped, with grace
	grace time.Duration
}

// New checks the configuration and fills in defaults.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Engine == nil || cfg.Network == nil || cfg.Volumes == nil:
		return nil, errors.New("pods: Engine, Network and Volumes are needed")
	case cfg.NodeName == "" || cfg.DataDir == "":
		return nil, errors.New("pods: NodeName and DataDir are needed")
	case cfg.Reports.Status == nil || cfg.Reports.Deleted == nil:
		return nil, errors.New("pods: Reports.Status and Reports.Deleted are needed")
	}
	if cfg.Reports.Event == nil {
		cfg.Reports.Event = func(*corev1.Pod, string, string, string, string) {}
	}
	if cfg.Allocatable == nil {
		cfg.Allocatable = func() corev1.ResourceList { return nil }
	}
	if len(cfg.DNS.Nameservers) == 0 {
		cfg.DNS.Nameservers = []string{"169.254.20.10"}
	}
	cfg.DNS.Domain = orText(cfg.DNS.Domain, "cluster.local")
	cfg.DNS.HostFile = orText(cfg.DNS.HostFile, "/etc/resolv.conf")
	cfg.SeccompDir = orText(cfg.SeccompDir, filepath.Join(cfg.DataDir, "seccomp"))
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Agent{
		cfg: cfg, log: cfg.Logger, paths: paths{root: cfg.DataDir},
		prober:  prober{dial: cfg.Dial, exec: cfg.Engine.Exec},
		starts:  make(chan struct{}, orCount(cfg.StartConcurrency, 8)),
		pulls:   make(chan struct{}, orCount(cfg.PullConcurrency, 4)),
		workers: map[types.UID]*worker{}, sweeping: map[types.UID]chan struct{}{}, gone: map[types.UID]time.Time{},
	}, nil
}

func orText(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

func orCount(v, d int) int {
	if v <= 0 {
		return d
	}
	return v
}

// Run adopts what a predecessor left, then works until ctx ends. It returns an error only when the data folder is unusable.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.paths.pods(), 0o755); err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer a.running.Wait()
	defer cancel()
	if err := a.adopt(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	a.ctx = ctx
	for _, w := range a.workers {
		a.launch(w)
	}
	a.mu.Unlock()
	a.sweep(ctx)
	ticker := time.NewTicker(relistEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-a.cfg.Engine.Events():
			if ev.Kind == EventResync {
				a.relist(ctx)
			} else if w := a.worker(types.UID(ev.State.PodUID)); w != nil {
				w.observe(ev.State)
			}
		case <-ticker.C:
			a.relist(ctx)
			a.sweep(ctx)
		}
	}
}

// launch starts a worker's goroutine; a.mu is held.
func (a *Agent) launch(w *worker) {
	if a.ctx == nil || w.launched {
		return
	}
	w.launched = true
	ctx := a.ctx
	swept := a.sweeping[w.uid]
	a.running.Go(func() {
		if swept != nil {
			<-swept // what would be made now would be removed with the rests
		}
		if w.run(ctx) {
			a.forget(w)
		}
	})
}

// forget drops a worker whose pod is over, or begins anew when the pod was bound again meanwhile.
func (a *Agent) forget(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.mu.Lock()
	next, bound := w.next, w.state.Bound
	w.mu.Unlock()
	delete(a.workers, w.uid)
	if next != nil {
		again := a.newWorker(next)
		again.bind(next)
		a.workers[w.uid] = again
		a.launch(again)
		return
	}
	if bound {
		a.gone[w.uid] = time.Now()
	}
	for uid, at := range a.gone {
		if time.Since(at) > goneFor {
			delete(a.gone, uid)
		}
	}
}

func (a *Agent) worker(uid types.UID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

func (a *Agent) allWorkers() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w)
	}
	return out
}

// Set says which pods are bound to this node: all of them. Others that run here are stopped, and orphans of earlier lives removed.
func (a *Agent) Set(pods []*corev1.Pod) {
	want := make(map[types.UID]bool, len(pods))
	for _, pod := range pods {
		if a.mine(pod) {
			want[pod.UID] = true
			a.upsert(pod, true)
		}
	}
	for _, w := range a.allWorkers() {
		if !want[w.uid] {
			w.remove()
		}
	}
	a.mu.Lock()
	first := !a.synced
	a.synced = true
	ctx := a.ctx
	a.mu.Unlock()
	if first && ctx != nil {
		a.running.Go(func() { a.sweep(ctx) })
	}
}

// Upsert says that a pod is bound to this node, or has changed. One bound elsewhere is removed.
func (a *Agent) Upsert(pod *corev1.Pod) {
	if !a.mine(pod) {
		a.Remove(pod.UID)
		return
	}
	a.upsert(pod, false)
}

func (a *Agent) mine(pod *corev1.Pod) bool { return pod.Spec.NodeName == a.cfg.NodeName }

func (a *Agent) upsert(pod *corev1.Pod, sure bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, gone := a.gone[pod.UID]; gone && !sure && time.Since(at) < goneFor {
		return
	}
	w := a.workers[pod.UID]
	if w == nil {
		w = a.newWorker(pod)
		a.workers[pod.UID] = w
	}
	w.bind(pod)
	a.launch(w)
}

// Remove says that a pod's object is gone, or was never bound: what there is of it is stopped and removed.
func (a *Agent) Remove(uid types.UID) {
	if w := a.worker(uid); w != nil {
		w.remove()
	}
}

// Prepare makes sandbox, network and images of a pod whose claim was granted, before its binding is seen (D6). Unless Upsert follows
// within GrantTTL they are removed again.
func (a *Agent) Prepare(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, gone := a.gone[pod.UID]; gone || a.workers[pod.UID] != nil {
		return
	}
	w := a.newWorker(pod)
	w.claimedUntil = time.Now().Add(GrantTTL)
	a.workers[pod.UID] = w
	a.launch(w)
}

// Hold starts no containers of pods that match, until Lift; those that run go on. Called before Run, it holds for what Run adopts.
func (a *Agent) Hold(match func(*corev1.Pod) bool) {
	a.setFence(func(fence) fence { return fence{match: match} })
}

// Fence stops the containers of all pods that match, giving each at most grace, and holds back new ones until Lift (D8). It returns
// nil once none of them runs, or ctx's error.
func (a *Agent) Fence(ctx context.Context, match func(*corev1.Pod) bool, grace time.Duration) error {
	a.setFence(func(fence) fence { return fence{match: match, stops: true, grace: grace} })
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		busy := false
		for _, w := range a.allWorkers() {
			busy = busy || w.fencedAndRunning()
		}
		if !busy {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fence: pods are still running: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

// Lift lets pods run again that were held or fenced and do not match any more; nil matches none.
func (a *Agent) Lift(match func(*corev1.Pod) bool) {
	a.setFence(func(f fence) fence {
		f.match = match
		return f
	})
}

func (a *Agent) setFence(next func(fence) fence) {
	a.mu.Lock()
	a.fence = next(a.fence)
	f := a.fence
	a.mu.Unlock()
	for _, w := range a.allWorkers() {
		w.setFence(f)
	}
}

// NeedsIdentity selects pods of which there must never be two: those of StatefulSets, and those with a ReadWriteOnce claim. claims
// answers with a claim's access modes, or nil.
func NeedsIdentity(pod *corev1.Pod, claims func(namespace, name string) []corev1.PersistentVolumeAccessMode) bool {
	for _, o := range pod.OwnerReferences {
		if o.Kind == "StatefulSet" && o.Controller != nil && *o.Controller {
			return true
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim == nil || claims == nil {
			continue
		}
		for _, mode := range claims(pod.Namespace, v.PersistentVolumeClaim.ClaimName) {
			if mode == corev1.ReadWriteOnce || mode == corev1.ReadWriteOncePod {
				return true
			}
		}
	}
	return false
}

// Changed says that a ConfigMap or Secret changed: the volumes of pods that use it are brought up to date now rather than at the next turn.
func (a *Agent) Changed(kind, namespace, name string) {
	for _, w := range a.allWorkers() {
		w.refreshIfUses(kind, namespace, name)
	}
}

// Pods returns all pods of this node, each with its status as it is now. They are the caller's to change.
func (a *Agent) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range a.allWorkers() {
		if pod := w.snapshot(); pod != nil {
			out = append(out, pod)
		}
	}
	return out
}

// Pod finds a pod by namespace and name, and by UID unless that is empty. ErrNotFound.
func (a *Agent) Pod(namespace, name string, uid types.UID) (*corev1.Pod, error) {
	var found *corev1.Pod
	for _, w := range a.allWorkers() {
		pod := w.snapshot()
		if pod == nil || pod.Namespace != namespace || pod.Name != name || uid != "" && pod.UID != uid {
			continue
		}
		if found == nil || found.DeletionTimestamp != nil {
			found = pod
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, ErrNotFound)
	}
	return found, nil
}

// Container returns the running container of that name. ErrNotFound, ErrNotRunning.
func (a *Agent) Container(uid types.UID, name string) (ContainerState, error) {
	w := a.worker(uid)
	if w == nil {
		return ContainerState{}, fmt.Errorf("pod %s: %w", uid, ErrNotFound)
	}
	return w.container(name)
}

// LogPath is where the container's present log is, or that of the attempt before. The file need not exist (any more).
func (a *Agent) LogPath(pod *corev1.Pod, container string, attempt int) string {
	return a.paths.log(pod, container, attempt)
}

// LogDir holds a pod's logs.
func (a *Agent) LogDir(pod *corev1.Pod) string { return a.paths.logs(pod) }

// hostIPs are the node's addresses.
func (a *Agent) hostIPs() []netip.Addr { return a.cfg.HostIPs }
