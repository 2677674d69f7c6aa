package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"shoal/consensus"
	"shoal/consensus/bugs"
	"shoal/mesh/dns"
	"shoal/mesh/podnet"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
	"shoal/placement"
	"shoal/runtime/kubelet"
	"shoal/runtime/pods"
	"shoal/runtime/stats"
	"shoal/runtime/volumes"
)

// tunnelPrefix is completed by the peer's ID: control sockets of userspace tunnels lie in one folder of the machine, whichever network
// namespace their peers are in.
const tunnelPrefix = "shl"

var errNoRange = errors.New("no pod range is left")

// node is this host as a Kubernetes Node: its containers, its network and its share of the store's pods.
type node struct {
	peer   *Peer
	log    *slog.Logger
	engine Runtime
	// watchdog is told of the lease.
	watchdog watchdog
	ledger   *pods.Ledger
	agent    *pods.Agent
	podnet   *podnet.Network
	tunnel   *tunnel.Tunnel
	proxy    *vip.Proxy
	names    *dns.Server
	stats    *stats.Node

	provisioner *provisioner

	kubelet *kubelet.Server
	pods    netip.Prefix // this node's range

	client atomic.Pointer[kubernetes.Clientset] // nil until the API serves
	events atomic.Pointer[record.EventRecorder]

	changed chan struct{} // the Node's status should be looked at

	followed *queue // the pods' feeds

	imageUse  pods.ImageUse // the measuring loop's own, as what follows
	collected time.Time     // when unused images were removed last

	takenSince time.Time // while fenced: since when the store has this node as not lost; the renewer's own

	lock  sync.Mutex
	bound map[types.UID]*corev1.Pod // bound to this node, as the store has them
	ports map[types.UID]bool        // pods whose host ports are published
}

// openNode opens the host's parts, the slow ones at once. Nothing runs yet.
func (p *Peer) openNode(ctx context.Context) (*node, error) {
	n := &node{
		peer: p, log: p.log, ledger: pods.NewLedger(), changed: make(chan struct{}, 1), followed: newQueue(),
		bound: map[types.UID]*corev1.Pod{}, ports: map[types.UID]bool{},
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.openEngine(groupCtx) })
	group.Go(func() error { return n.openNetwork(groupCtx) })
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, n.close())
	}
	if err := n.openAgent(); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// openEngine starts or adopts the container runtime.
func (n *node) openEngine(ctx context.Context) (err error) {
	n.engine, err = n.peer.cfg.openRuntime(ctx)
	n.watchdog = watchdog{runtime: n.engine}
	return err
}

// openNetwork takes this node's pod range and makes the pods' network, the tunnel, the virtual IPs and the name server. What a predecessor left stands until
// the data plane has something better.
func (n *node) openNetwork(ctx context.Context) error {
	p := n.peer
	cluster := p.self.Cluster
	err := retry(ctx, n.log, "take a pod range", func(ctx context.Context) (err error) {
		n.pods, err = claimPodRange(ctx, p.host, p.self.ID, cluster.ClusterCIDR)
		return err
	})
	if err != nil {
		return err
	}
	n.podnet, err = podnet.Open(ctx, podnet.Config{PodCIDR: n.pods, ClusterCIDR: cluster.ClusterCIDR, Links: p.cfg.Machine.Links, Logger: n.log})
	if err != nil {
		return err
	}
	if n.tunnel, err = p.cfg.openTunnel(ctx, p.self.ID); err != nil {
		return err
	}
	n.proxy, err = vip.Open(ctx, vip.Config{Ruleset: p.cfg.Machine.Ruleset, Logger: n.log, Node: vip.Node{
		Name: p.self.Name, Zone: p.cfg.Zone, IPs: []netip.Addr{p.advertise},
		PodCIDR: n.pods, ClusterCIDR: cluster.ClusterCIDR, ServiceCIDR: cluster.ServiceCIDR,
	}})
	if err != nil {
		return err
	}
	n.names, err = p.cfg.openNames(ctx)
	return err
}

func (n *node) openAgent() error {
	dir := filepath.Join(n.peer.cfg.DataDir, "node")
	if err := n.openProvisioner(); err != nil {
		return err
	}
	vols, err := n.peer.cfg.openVolumes(volumes.Config{
		Dir: filepath.Join(dir, "volumes"), Objects: n.objects(), Allocatable: n.allocatable, Provision: n.provisioner.provision, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.agent, err = pods.New(pods.Config{
		Engine: n.engine, Network: &podNetwork{node: n}, Volumes: vols, Objects: n.objects(), Reports: n.reports(),
		NodeName: n.peer.self.Name, HostIPs: []netip.Addr{n.peer.advertise}, DataDir: dir,
		Allocatable: n.allocatable, Dial: n.peer.cfg.Machine.DialPod, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.ledger.OnGrant = func(claim pods.Claim) {
		if claim.Pod != nil {
			n.agent.Prepare(claim.Pod)
		}
	}
	n.stats, err = stats.New(stats.Config{
		Engine: n.engine, NodeName: n.peer.self.Name, DataDir: n.peer.cfg.DataDir, Pods: n.agent.Pods,
		VolumeUsage: vols.Usage, LogDir: n.agent.LogDir, Proc: n.peer.cfg.Machine.Proc, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.kubelet, err = kubelet.New(kubelet.Config{
		Agent: n.agent, Streams: n.engine, Stats: n.stats, Logger: n.log,
		// The port has proved that the caller is a peer of this cluster; whom it acts for, its API has authorised.
		Authorize: func(r *http.Request) error {
			if callerOf(r) == "" {
				return errors.New("only peers may call")
			}
			return nil
		},
	})
	return err
}

// Run follows the pods bound to this node until ctx ends. Pods go on running afterwards.
func (n *node) Run(ctx context.Context) error {
	shards, err := awaitShards(ctx, n.peer.dataShards)
	if err != nil {
		return nil // the peer is being stopped
	}
	q := n.followed
	group, ctx := errgroup.WithContext(ctx)
	n.followShards(ctx, group, q, shards)
	group.Go(func() error { return n.agent.Run(ctx) })
	group.Go(func() error { return n.names.Run(ctx) })
	group.Go(func() error { return n.followPods(ctx, q, len(shards)) })
	group.Go(func() error { return n.keepStatus(ctx) })
	group.Go(func() error { return n.provisioner.Run(ctx) })
	group.Go(func() error { return n.measure(ctx) })
	content := func(shard uint64) {
		for prefix, kind := range map[string]string{configMapPrefix: "ConfigMap", secretPrefix: "Secret"} {
			group.Go(func() error { return n.followContent(ctx, shard, prefix, kind) })
		}
	}
	for _, shard := range shards {
		content(shard)
	}
	group.Go(func() error {
		return followNew(ctx, n.peer.host, n.peer.dataShards, shards, func(shard uint64) {
			n.followShards(ctx, group, q, []uint64{shard})
			content(shard)
		})
	})
	err = group.Wait()
	return errors.Join(err, n.close())
}

// clear ends what still runs here, for a peer that leaves for good: pods of DaemonSets, which no drain moves.
func (n *node) clear(ctx context.Context) error {
	inventory, err := n.engine.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, sandbox := range inventory.Sandboxes {
		failed = append(failed, n.engine.RemoveSandbox(ctx, sandbox.PodUID))
	}
	return errors.Join(append(failed, n.proxy.Close(ctx), n.podnet.Close(ctx))...)
}

// close leaves containers, network and rules as they are, for the next peer on this host. Only the daemon of a peer that has left ends.
func (n *node) close() error {
	var failed []error
	if n.engine != nil {
		failed = append(failed, n.engine.Close(n.peer.gone.Load()))
	}
	if n.tunnel != nil {
		// A userspace tunnel ends with this process anyway; the kernel's stays.
		if status, err := n.tunnel.Status(); err == nil && status.Userspace {
			failed = append(failed, n.tunnel.Close())
		}
	}
	return errors.Join(failed...)
}

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

// api is the client, once the API serves.
func (n *node) api() (*kubernetes.Clientset, error) {
	if client := n.client.Load(); client != nil {
		return client, nil
	}
	return nil, errors.New("the API of this peer is starting")
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
