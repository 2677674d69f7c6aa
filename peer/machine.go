package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/consensus"
	"shoal/mesh/dns"
	"shoal/mesh/podnet"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
	"shoal/peer/admin"
	"shoal/runtime/containerd"
	"shoal/runtime/containerd/shimbin"
	"shoal/runtime/pods"
	"shoal/runtime/volumes"
)

// Machine is what a peer stands on: network, disk and kernel. The zero value is this host. A simulation sets every field, and keeps the
// values over the deaths of the peers on the machine, as a kernel does.
type Machine struct {
	// Listen opens the one TCP port and ListenPacket the UDP port of the same number, both at "IP:PORT". Dial connects to a TCP port.
	Listen       func(ctx context.Context, address string) (net.Listener, error)
	ListenPacket func(address string) (net.PacketConn, error)
	Dial         func(ctx context.Context, address string) (net.Conn, error)
	// Admin opens the socket for local administration, which makes it one process per data folder.
	Admin func(path string) (net.Listener, error)
	// Now is the wall clock, which stamps revisions and is compared with the other peers'; it may be wrong and jump. Nil is the host's.
	// Whatever only measures how long something takes, and the times that the API writes into objects, do not ask it.
	Now func() time.Time
	// Elapsed is the clock that read leases are measured with (consensus.Config.Elapsed). Nil is the host's.
	Elapsed func() time.Duration
	// StoreFS is the file system of the store. Everything else a peer keeps, small files that are replaced by renaming, is in the data
	// folder in any case.
	StoreFS consensus.FS
	// Frugal keeps the store to one worker per kind.
	Frugal bool
	// Proc is what stands in for /proc, where the node reads its memory and processes; "" is the host's.
	Proc string
	// The kernel below the node. DialPod reaches pods for probes.
	Runtime Runtime
	Links   podnet.Links
	Device  tunnel.Device
	Ruleset vip.Ruleset
	Volumes Volumes
	DialPod pods.DialFunc
	// Observe, if there is one, is given what checkers look into while the peer serves. They must not have to ask over the network that
	// they judge.
	Observe func(Inside)
}

// Inside is what a peer knows and nobody else: its replicas, and for what it holds room on its node.
type Inside struct {
	PeerID string
	Store  *consensus.Host
	Claims func(now time.Time) []pods.Claim
}

// simulated tells whether there is no kernel below.
func (m Machine) simulated() bool { return m.Runtime != nil }

// Runtime is the container runtime of a machine, and its watchdog, which stops what must not run twice when the peer falls silent.
type Runtime interface {
	pods.Engine
	// Usage is Stats without the sizes of writable layers.
	Usage(ctx context.Context) ([]pods.PodStats, error)
	// Renewed says that the peer's lease was renewed by a request begun at that moment; Restarting, that the peer ends and will be
	// waited for until that moment.
	Renewed(at time.Time) error
	Restarting(until time.Time) error
	// Close lets go. Containers run on, unless the peer is gone for good: then the runtime ends too.
	Close(gone bool) error
}

// Volumes makes the volumes of pods and knows how much they hold.
type Volumes interface {
	pods.Volumes
	Usage(pod *corev1.Pod) map[string]pods.FSUsage
}

// hostRuntime is containerd, with its daemon if it is the embedded one.
type hostRuntime struct {
	*containerd.Engine
	daemon *containerd.Daemon // nil with a system containerd
}

// Close implements Runtime.
func (r hostRuntime) Close(gone bool) error {
	err := r.Engine.Close()
	if r.daemon != nil && err == nil {
		err = r.daemon.Close(gone)
	}
	return err
}

// openRuntime starts or adopts containerd.
func (c Config) openRuntime(ctx context.Context) (Runtime, error) {
	if c.Machine.Runtime != nil {
		return c.Machine.Runtime, nil
	}
	folder := filepath.Join(c.DataDir, "bin")
	shim, err := shimbin.Find(shimbin.Shim, folder)
	if err != nil {
		return nil, err
	}
	config := containerd.Config{
		Socket: c.Containerd, SystemShim: c.Containerd != "", StateDir: containerd.StateDir(c.DataDir), Shim: shim,
		CgroupRoot: "/" + c.CgroupParent + "/pods", Lease: true, Logger: c.Logger,
	}
	var host hostRuntime
	if c.Containerd == "" {
		program, err := shimbin.Find(shimbin.Containerd, folder)
		if err != nil {
			return nil, err
		}
		host.daemon, err = containerd.StartDaemon(ctx, containerd.DaemonConfig{
			Program: program, Root: filepath.Join(c.DataDir, "containerd"), StateDir: config.StateDir, Logger: c.Logger,
		})
		if err != nil {
			return nil, err
		}
		config.Socket = host.daemon.Socket()
	}
	if host.Engine, err = containerd.Open(ctx, config); err != nil {
		if host.daemon != nil {
			return nil, errors.Join(err, host.daemon.Close(false))
		}
		return nil, err
	}
	return host, nil
}

// openTunnel opens the WireGuard device of a peer.
func (c Config) openTunnel(ctx context.Context, peerID string) (*tunnel.Tunnel, error) {
	if c.Machine.Device != nil {
		return tunnel.New(c.Machine.Device, c.Logger), nil
	}
	return tunnel.Open(ctx, tunnel.Config{Interface: tunnelPrefix + peerID[:12], Logger: c.Logger})
}

// openNames opens the name server. A simulated machine has names and no sockets.
func (c Config) openNames(ctx context.Context) (*dns.Server, error) {
	if c.Machine.simulated() {
		return dns.New(dns.Config{Logger: c.Logger}), nil
	}
	return dns.Open(ctx, dns.Config{Logger: c.Logger})
}

func (c Config) openVolumes(config volumes.Config) (Volumes, error) {
	if c.Machine.Volumes != nil {
		return c.Machine.Volumes, nil
	}
	return volumes.New(config)
}

// listenPacket opens the UDP port.
func (c Config) listenPacket() (net.PacketConn, error) {
	address := net.JoinHostPort(c.Listen, fmt.Sprint(c.Port))
	if c.Machine.ListenPacket != nil {
		return c.Machine.ListenPacket(address)
	}
	return net.ListenPacket("udp", address)
}

// listen opens the TCP port, to see whether it is free.
func (c Config) listen(ctx context.Context) (io.Closer, error) {
	address := net.JoinHostPort(c.Listen, fmt.Sprint(c.Port))
	if c.Machine.Listen != nil {
		return c.Machine.Listen(ctx, address)
	}
	return net.Listen("tcp", address)
}

// openAdmin opens the socket for local administration.
func (c Config) openAdmin() (net.Listener, error) {
	if c.Machine.Admin != nil {
		return c.Machine.Admin(c.SocketPath())
	}
	return admin.Listen(c.SocketPath())
}
