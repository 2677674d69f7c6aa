// Package podnet connects a node's pods: a veth pair and an address for each.
//
// There is no bridge. Every pod has one address of the node's pod range, as a /32 with the node as its only neighbour,
// and the node has a route to it through the pod's own link. So every packet between pods is routed by the node, also
// on one node: address translation for Services and network policy see all of them, and a pod can neither send from
// another address than its own nor pose as somebody else's gateway. (With a bridge this would hang on br_netfilter,
// which sends translated packets between two ports past the routing, and is switched for the whole host.)
//
// What stands is written on the links themselves (their alias), so a restarted peer adopts it.
package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// DefaultMTU is that of the tunnel, which every path between nodes passes.
const DefaultMTU = 1420

// Attachment is a pod's connection.
type Attachment struct {
	PodUID string
	NetNS  string // path of the pod's network namespace; empty in what Existing returns
	IP     netip.Addr
}

// Node is the node's end of all its pods.
type Node struct {
	Gateway     netip.Addr // the node's own address in the pod network
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix // all nodes' pod ranges: what leaves it is masqueraded
	MTU         int          // bytes
}

// Links is the kernel's side: the host's or a simulated one.
type Links interface {
	// Setup gives the node its address and what pods need (forwarding, masquerading), or completes what a predecessor
	// left, and removes half-made attachments.
	Setup(ctx context.Context, n Node) error
	// Attach connects a pod; the namespace must not have an eth0 yet.
	Attach(ctx context.Context, a Attachment) error
	// Detach removes a pod's connection; one that does not exist is no error.
	Detach(ctx context.Context, podUID string) error
	// Existing lists the connections that stand.
	Existing(ctx context.Context) ([]Attachment, error)
	// Teardown removes all of it.
	Teardown(ctx context.Context) error
}

// Config is what Open needs.
type Config struct {
	PodCIDR     netip.Prefix // this node's range; its first host address becomes the node's own
	ClusterCIDR netip.Prefix
	MTU         int   // bytes; 0 means DefaultMTU
	Links       Links // nil means this host's kernel, in the network namespace of the calling thread
	Logger      *slog.Logger
}

// Network is the node's pods and their addresses.
type Network struct {
	links  Links
	node   Node
	logger *slog.Logger

	mu   sync.Mutex
	pool *Pool
	pods map[string]netip.Addr // by pod UID
	busy map[string]chan struct{}
}

// Open sets up the node's side and adopts the pods that are still connected.
func Open(ctx context.Context, c Config) (*Network, error) {
	pool, err := NewPool(c.PodCIDR)
	if err != nil {
		return nil, err
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Links == nil {
		if c.Links, err = hostLinks(); err != nil {
			return nil, err
		}
	}
	n := &Network{
		links: c.Links, logger: c.Logger, pool: pool, pods: map[string]netip.Addr{}, busy: map[string]chan struct{}{},
		node: Node{
			Gateway: pool.Gateway(), PodCIDR: pool.Prefix(), ClusterCIDR: c.ClusterCIDR.Masked(), MTU: c.MTU,
		},
	}
	if err := n.links.Setup(ctx, n.node); err != nil {
		return nil, fmt.Errorf("set up pod network %s: %w", n.node.PodCIDR, err)
	}
	if err := n.adopt(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// adopt takes over what a predecessor attached. A connection that cannot be ours (another range, an address twice)
// is removed: its pod could not be reached anyway.
func (n *Network) adopt(ctx context.Context) error {
	existing, err := n.links.Existing(ctx)
	if err != nil {
		return fmt.Errorf("list attached pods: %w", err)
	}
	for _, a := range existing {
		if err := n.pool.Claim(a.IP, a.PodUID); err != nil {
			n.logger.Warn("pod connection does not fit this node and is removed", "pod", a.PodUID, "err", err)
			if err := n.links.Detach(ctx, a.PodUID); err != nil {
				return fmt.Errorf("remove the connection of pod %s: %w", a.PodUID, err)
			}
			continue
		}
		n.pods[a.PodUID] = a.IP
	}
	return nil
}

// Attach connects the network namespace at netns and returns the pod's address. Attaching a pod that is attached
// returns its address. Errors: ErrExhausted, or what the kernel said.
func (n *Network) Attach(ctx context.Context, podUID, netns string) (netip.Addr, error) {
	unlock, err := n.lock(ctx, podUID)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unlock()

	n.mu.Lock()
	ip, attached := n.pods[podUID]
	if !attached {
		ip, err = n.pool.Allocate(podUID, time.Now())
	}
	n.mu.Unlock()
	if attached || err != nil {
		return ip, err
	}
	if err := n.links.Attach(ctx, Attachment{PodUID: podUID, NetNS: netns, IP: ip}); err != nil {
		err = fmt.Errorf("attach pod %s: %w", podUID, err)
		if undo := n.links.Detach(context.WithoutCancel(ctx), podUID); undo != nil {
			return netip.Addr{}, errors.Join(err, undo) // the address stays taken: the link may still use it
		}
		n.release(ip)
		return netip.Addr{}, err
	}
	n.mu.Lock()
	n.pods[podUID] = ip
	n.mu.Unlock()
	return ip, nil
}

// Detach removes the pod's connection and releases its address. It may be called again, and before or after the
// pod's network namespace is gone.
func (n *Network) Detach(ctx context.Context, podUID string) error {
	unlock, err := n.lock(ctx, podUID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.links.Detach(ctx, podUID); err != nil {
		return fmt.Errorf("detach pod %s: %w", podUID, err)
	}
	n.mu.Lock()
	ip, attached := n.pods[podUID]
	delete(n.pods, podUID)
	n.mu.Unlock()
	if attached {
		n.release(ip)
	}
	return nil
}

func (n *Network) release(ip netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pool.Release(ip, time.Now())
}

// Existing returns the attached pods' addresses by pod UID.
func (n *Network) Existing() map[string]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.pods)
}

// Sweep detaches every pod that keep does not want, and returns their UIDs.
func (n *Network) Sweep(ctx context.Context, keep func(podUID string) bool) ([]string, error) {
	var (
		swept []string
		errs  []error
	)
	for podUID := range n.Existing() {
		if keep(podUID) {
			continue
		}
		if err := n.Detach(ctx, podUID); err != nil {
			errs = append(errs, err)
			continue
		}
		swept = append(swept, podUID)
	}
	return swept, errors.Join(errs...)
}

// Gateway is the node's own address in the pod network.
func (n *Network) Gateway() netip.Addr { return n.node.Gateway }

// Close removes every pod's connection, the node's address and the masquerading: for a peer that leaves for good. A peer that
// merely stops leaves them to its successor.
func (n *Network) Close(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.links.Teardown(ctx); err != nil {
		return fmt.Errorf("remove pod network %s: %w", n.node.PodCIDR, err)
	}
	clear(n.pods)
	return nil
}

// lock serialises the work on one pod, while other pods go on.
func (n *Network) lock(ctx context.Context, podUID string) (unlock func(), err error) {
	for {
		n.mu.Lock()
		wait, taken := n.busy[podUID]
		if !taken {
			done := make(chan struct{})
			n.busy[podUID] = done
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.busy, podUID)
				n.mu.Unlock()
				close(done)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for pod %s: %w", podUID, ctx.Err())
		}
	}
}
