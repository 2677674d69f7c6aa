package api

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	coordinationv1 "k8s.io/api/coordination/v1"

	"shoal/consensus"
	"shoal/runtime/stats"
)

// Issuer is the name under which service-account tokens are signed and verified.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// GitVersion is the Kubernetes version the API reports when the build did not set one.
const GitVersion = "v1.37.2"

// DefaultTolerationSeconds is how long a pod stays bound to a lost node unless it says otherwise (Kubernetes: 300).
const DefaultTolerationSeconds = 5

// Config is everything the API of one peer needs.
type Config struct {
	// Host holds the cluster's objects. It must have founded or joined a cluster.
	Host *consensus.Host

	// PeerName is the name of this peer's Node.
	PeerName string
	// AdvertiseAddress is where other hosts reach this API.
	AdvertiseAddress netip.AddrPort
	// ServiceCIDR is the range of ClusterIPs; its first address is that of the kubernetes Service.
	ServiceCIDR netip.Prefix

	// ClientCA is the PEM bundle that signs client certificates: user = common name, groups = organisations.
	ClientCA []byte
	// ServiceAccountKey signs service-account tokens; every peer of a cluster holds the same key.
	ServiceAccountKey crypto.Signer
	// EncryptionKey, 32 bytes, seals Secrets at rest (AES-256-GCM); every peer of a cluster holds the same key.
	EncryptionKey []byte

	// KubeletDial opens a connection, already authenticated on both sides, to the kubelet HTTP API of a node; used for
	// logs, exec, attach, port-forward and nodes/proxy. Nil refuses those requests.
	KubeletDial func(ctx context.Context, nodeName string) (net.Conn, error)
	// NodeLeases supplies the Leases of kube-node-lease, which live in memory. Nil leaves the namespace to the store.
	NodeLeases func() []coordinationv1.Lease

	// Usage tells what nodes and their pods use, for the metrics API; nodes that do not answer are left out. Nil serves no such API.
	Usage func(ctx context.Context, nodes []string) map[string]stats.Use

	// AuditLog is the file that gets one JSON line per request, with metadata only. Empty writes none.
	AuditLog string

	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.Host == nil:
		return errors.New("api: no host to keep objects in")
	case !c.AdvertiseAddress.IsValid():
		return errors.New("api: no address to advertise")
	case !c.ServiceCIDR.IsValid():
		return errors.New("api: no range for ClusterIPs")
	case c.ServiceCIDR.Bits() > c.ServiceCIDR.Addr().BitLen()-3:
		return fmt.Errorf("api: range for ClusterIPs %s holds fewer than 8 addresses", c.ServiceCIDR)
	case len(c.ClientCA) == 0:
		return errors.New("api: no CA for client certificates")
	case c.ServiceAccountKey == nil:
		return errors.New("api: no key for service-account tokens")
	case len(c.EncryptionKey) != 32:
		return fmt.Errorf("api: encryption key has %d bytes, want 32", len(c.EncryptionKey))
	}
	c.ServiceCIDR = c.ServiceCIDR.Masked()
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// serviceIP is the address of the kubernetes Service.
func (c *Config) serviceIP() netip.Addr { return c.ServiceCIDR.Addr().Next() }

func (c *Config) serviceNet() net.IPNet {
	return net.IPNet{
		IP:   c.ServiceCIDR.Addr().AsSlice(),
		Mask: net.CIDRMask(c.ServiceCIDR.Bits(), c.ServiceCIDR.Addr().BitLen()),
	}
}
