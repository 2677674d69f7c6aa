package peer

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"shoal/mesh/dns"
	"shoal/mesh/podnet"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
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

	bound *bindings
	ports map[types.UID]bool // pods whose host ports are published
}

// openNode opens the host's parts, the slow ones at once. Nothing runs yet.
func (p *Peer) openNode(ctx context.Context) (*node, error) {
	n := &node{
		peer: p, log: p.log, ledger: pods.NewLedger(), changed: make(chan struct{}, 1), followed: newQueue(),
		ports: map[types.UID]bool{},
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
	n.bound = newBindings(n.peer.self.Name, n.agent, n.ledger)
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
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.agent.Run(ctx) })
	group.Go(func() error { return n.names.Run(ctx) })
	group.Go(func() error { return n.followPods(ctx) })
	group.Go(func() error { return n.keepStatus(ctx) })
	group.Go(func() error { return n.provisioner.Run(ctx) })
	group.Go(func() error { return n.measure(ctx) })
	group.Go(func() error {
		return followNew(ctx, n.peer.host, n.peer.dataShards, nil, func(shard uint64) {
			group.Go(func() error { return n.followShard(ctx, shard) })
			for prefix, kind := range map[string]string{configMapPrefix: "ConfigMap", secretPrefix: "Secret"} {
				group.Go(func() error { return n.followContent(ctx, shard, prefix, kind) })
			}
		})
	})
	err := group.Wait()
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

// api is the client, once the API serves.
func (n *node) api() (*kubernetes.Clientset, error) {
	if client := n.client.Load(); client != nil {
		return client, nil
	}
	return nil, errors.New("the API of this peer is starting")
}
