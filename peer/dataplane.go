package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"shoal/consensus"
	"shoal/mesh/dns"
	"shoal/mesh/services"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
	"shoal/peer/identity"
)

// dataPlane carries Services and Nodes from the store into this host's kernel: virtual IPs, names and tunnels. What it has installed
// goes on working without it and without any quorum.
type dataPlane struct {
	host   *consensus.Host
	shards func() []uint64
	self   string // Node name
	key    identity.WireGuardKey
	source netip.Addr // this node's own address in the pod network
	proxy  *vip.Proxy
	names  *dns.Server
	tunnel *tunnel.Tunnel
	// selfChanged is called when this node's own object changes: somebody may have judged it, and it knows better.
	selfChanged func()
	log         *slog.Logger

	queue *queue
	nodes map[string]*corev1.Node
}

// retryDataPlane is when something that the kernel refused is tried again.
const retryDataPlane = time.Second

// follow starts one feed per shard and prefix and waits until each has brought its list. The caller owns the queue's loop.
func follow(ctx context.Context, group *errgroup.Group, host *consensus.Host, q *queue, log *slog.Logger, shards []uint64, prefixes ...string) {
	for _, shard := range shards {
		for _, prefix := range prefixes {
			f := &feed{host: host, shard: shard, prefix: prefix, log: log, apply: q.from(shard, prefix)}
			group.Go(func() error { return f.Run(ctx) })
		}
	}
}

// followNew calls start for every shard that this peer learns of later, until ctx ends. What was empty when it was made cannot hold
// anything up: a new shard's feeds are not waited for.
func followNew(ctx context.Context, host *consensus.Host, shards func() []uint64, known []uint64, start func(shard uint64)) error {
	for {
		changed := host.ShardsChanged()
		for _, shard := range shards() {
			if !slices.Contains(known, shard) {
				known = append(known, shard)
				start(shard)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// Run serves until ctx ends.
func (d *dataPlane) Run(ctx context.Context) error {
	d.queue, d.nodes = newQueue(), map[string]*corev1.Node{}
	shards, err := awaitShards(ctx, d.host, d.shards)
	if err != nil {
		return nil // the peer is being stopped
	}
	group, ctx := errgroup.WithContext(ctx)
	follow(ctx, group, d.host, d.queue, d.log, []uint64{consensus.MetaShard}, nodePrefix)
	follow(ctx, group, d.host, d.queue, d.log, shards, servicePrefix, endpointPrefix)
	group.Go(func() error {
		return followNew(ctx, d.host, d.shards, shards, func(shard uint64) {
			follow(ctx, group, d.host, d.queue, d.log, []uint64{shard}, servicePrefix, endpointPrefix)
		})
	})
	group.Go(func() error { return d.loop(ctx, 1+2*len(shards)) })
	return group.Wait()
}

// awaitShards waits until this peer has read which data shards there are. Those that it has replicas of are not all of them, and the
// endpoints of the others must not look as if they were gone.
func awaitShards(ctx context.Context, host *consensus.Host, shards func() []uint64) ([]uint64, error) {
	err := poll(ctx, func() bool { return host.ShardsRead() && len(shards()) > 0 })
	return shards(), err
}

// loop applies batch after batch. Until every feed has brought its list once it applies nothing: rules that a predecessor left are better
// than half of the new ones.
func (d *dataPlane) loop(ctx context.Context, feeds int) error {
	batch := services.Batch{Full: true}
	nodesChanged := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.queue.wake:
		}
		for _, c := range d.queue.take() {
			nodesChanged = d.collect(c, &batch) || nodesChanged
		}
		if nodesChanged && d.queue.has(consensus.MetaShard, nodePrefix) {
			nodesChanged = d.syncTunnel(ctx) != nil
		}
		if d.queue.feeds() >= feeds && d.syncServices(ctx, batch) == nil {
			batch = services.Batch{}
		}
		if nodesChanged || d.queue.feeds() >= feeds && !batchEmpty(batch) {
			time.AfterFunc(retryDataPlane, d.queue.poke)
		}
	}
}

// collect sorts one change into the batch; true if it concerns the tunnel.
func (d *dataPlane) collect(c change, batch *services.Batch) bool {
	switch o := c.Object.(type) {
	case *corev1.Node:
		if o.Name == d.self {
			d.selfChanged()
		}
		if c.Gone {
			delete(d.nodes, o.Name)
		} else {
			d.nodes[o.Name] = o
		}
		return true
	case *corev1.Service:
		dropByKey(&batch.Services, &batch.RemovedServices, keyOf(o))
		if c.Gone {
			batch.RemovedServices = append(batch.RemovedServices, keyOf(o))
		} else {
			batch.Services = append(batch.Services, o)
		}
	case *discoveryv1.EndpointSlice:
		dropByKey(&batch.Slices, &batch.RemovedSlices, keyOf(o))
		if c.Gone {
			batch.RemovedSlices = append(batch.RemovedSlices, keyOf(o))
		} else {
			batch.Slices = append(batch.Slices, o)
		}
	}
	return false
}

// dropByKey removes what a batch says about an object so far: the newest word counts.
func dropByKey[T object](changed *[]T, removed *[]podKey, key podKey) {
	kept := (*changed)[:0]
	for _, o := range *changed {
		if keyOf(o) != key {
			kept = append(kept, o)
		}
	}
	*changed = kept
	left := (*removed)[:0]
	for _, k := range *removed {
		if k != key {
			left = append(left, k)
		}
	}
	*removed = left
}

func batchEmpty(b services.Batch) bool {
	return !b.Full && len(b.Services)+len(b.RemovedServices)+len(b.Slices)+len(b.RemovedSlices) == 0
}

func (d *dataPlane) syncServices(ctx context.Context, batch services.Batch) error {
	if batchEmpty(batch) {
		return nil
	}
	if err := d.proxy.Sync(ctx, batch); err != nil {
		d.log.Error("the virtual IPs could not be brought up to date, trying again", "error", err)
		return err
	}
	d.names.Sync(batch)
	return nil
}

// syncTunnel makes the tunnel lead to every other node. A node that is down keeps its place: it may be back any moment, and nothing is
// sent to it as long as no endpoint there is ready.
func (d *dataPlane) syncTunnel(ctx context.Context) error {
	want := tunnel.Want{PrivateKey: tunnel.Key(d.key), ListenPort: wireGuardPort, Source: d.source}
	for name, node := range d.nodes {
		if name == d.self {
			continue
		}
		peer, err := tunnelPeer(node)
		if err != nil {
			d.log.Warn("a node cannot be reached through the tunnel", "node", name, "error", err)
			continue
		}
		want.Peers = append(want.Peers, peer)
	}
	err := d.tunnel.Sync(ctx, want)
	if err != nil {
		d.log.Error("the tunnel could not be brought up to date, trying again", "error", err)
	}
	return err
}

// tunnelPeer reads from a Node what its peer has written there.
func tunnelPeer(node *corev1.Node) (tunnel.Peer, error) {
	key, err := identity.ParseWireGuardKey(node.Annotations[wireGuardKeyAnnotation])
	if err != nil {
		return tunnel.Peer{}, fmt.Errorf("annotation %s: %w", wireGuardKeyAnnotation, err)
	}
	port, err := strconv.ParseUint(node.Annotations[wireGuardPortAnnotation], 10, 16)
	if err != nil {
		return tunnel.Peer{}, fmt.Errorf("annotation %s: %w", wireGuardPortAnnotation, err)
	}
	pods, err := netip.ParsePrefix(node.Spec.PodCIDR)
	if err != nil {
		return tunnel.Peer{}, fmt.Errorf("pod CIDR: %w", err)
	}
	for _, address := range node.Status.Addresses {
		if address.Type != corev1.NodeInternalIP {
			continue
		}
		ip, err := netip.ParseAddr(address.Address)
		if err != nil {
			return tunnel.Peer{}, err
		}
		return tunnel.Peer{
			ID: node.Annotations[peerAnnotation], PublicKey: tunnel.Key(key), Endpoint: netip.AddrPortFrom(ip, uint16(port)),
			AllowedIPs: []netip.Prefix{pods},
		}, nil
	}
	return tunnel.Peer{}, fmt.Errorf("it has no %s", corev1.NodeInternalIP)
}

// runDataPlane serves until ctx ends.
func (p *Peer) runDataPlane(ctx context.Context) error {
	n := p.node
	return (&dataPlane{
		host: p.host, shards: p.dataShards, self: p.self.Name, key: p.self.WireGuard, source: n.podnet.Gateway(),
		proxy: n.proxy, names: n.names, tunnel: n.tunnel, selfChanged: n.statusChanged, log: p.log,
	}).Run(ctx)
}
