package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"
)

// maxPeers bounds a lab by the addresses of its underlay, not by what a machine can carry.
const maxPeers = 99

// underlayPrefix is used only inside a lab's namespaces.
var underlayPrefix = netip.MustParsePrefix("192.168.77.0/24")

// Config says what lab to make.
type Config struct {
	// Peers is their number, at least 1.
	Peers int
	// Binary is the peer's executable; empty means this one.
	Binary string
	// Dir holds the peers' data; a folder inside it is made and removed. Empty means the system's temporary folder.
	Dir string
	// Disk gives every peer's data folder a disk of its own, of so many bytes, that can be filled and broken; 0 means a folder.
	Disk int64
	// Memory is how many bytes of memory the pods of a peer may have together; 0 means the machine's.
	Memory int64
	// Clocks gives every peer's process a clock that Peer.SetClock sets wrong. Reading it then takes a system call.
	Clocks bool
	// JoinArgs are given to every peer join.
	JoinArgs []string
	// Zones are the peers' zones, in their order; peers beyond them have none.
	Zones []string
	// Progress is told what begins, and gets a function to call when that is done. Nil means silence.
	Progress func(step string) (done func(error))
}

// Lab is a running cluster on this machine.
type Lab struct {
	Dir        string
	Kubeconfig string // a file that lists every peer, by forwarded loopback ports
	Peers      []*Peer

	cfg      Config
	cgroup   string
	underlay *underlay
	client   *host
}

// Open makes the namespaces, starts the peers and returns when every one of them is ready. On error nothing is left behind.
// It needs root.
func Open(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.Peers < 1 || cfg.Peers > maxPeers {
		return nil, fmt.Errorf("a lab has 1 to %d peers, not %d", maxPeers, cfg.Peers)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab makes network namespaces and containers: run it as root")
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) func(error) { return func(error) {} }
	}
	if cfg.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cfg.Binary = self
	}
	l := &Lab{cfg: cfg}
	if err := l.open(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) open(ctx context.Context) error {
	if err := l.step("network namespaces and underlay", l.makeNetwork); err != nil {
		return err
	}
	first := l.Peers[0]
	if err := l.step(first.Name+" founds the cluster", func() error {
		return l.startPeer(ctx, first)
	}); err != nil {
		return err
	}
	if len(l.Peers) > 1 {
		if err := l.step(fmt.Sprintf("%d more peers join", len(l.Peers)-1), func() error { return l.joinOthers(ctx) }); err != nil {
			return err
		}
	}
	return l.writeKubeconfig(ctx)
}

// step reports one piece of work.
func (l *Lab) step(name string, work func() error) error {
	done := l.cfg.Progress(name)
	err := work()
	done(err)
	return err
}

func (l *Lab) makeNetwork() error {
	suffix := make([]byte, 3)
	if _, err := rand.Read(suffix); err != nil {
		return err
	}
	name := "shoal-lab-" + hex.EncodeToString(suffix)
	dir, err := os.MkdirTemp(l.cfg.Dir, name+"-")
	if err != nil {
		return err
	}
	l.Dir, l.cgroup = dir, name
	if l.underlay, err = newUnderlay(name, underlayPrefix); err != nil {
		return err
	}
	for n := range l.cfg.Peers {
		peer, err := l.addPeer(n + 1)
		if err != nil {
			return err
		}
		l.Peers = append(l.Peers, peer)
	}
	l.client, err = l.underlay.plug("client", maxPeers+1)
	return err
}

func (l *Lab) addPeer(n int) (*Peer, error) {
	name := fmt.Sprintf("peer-%d", n)
	host, err := l.underlay.plug(name, n)
	if err != nil {
		return nil, err
	}
	peer := &Peer{
		Name: name, Dir: filepath.Join(l.Dir, name), Log: filepath.Join(l.Dir, name+".log"), Address: host.address.String(),
		host: host, binary: l.cfg.Binary, cgroup: l.cgroup + "/" + name,
	}
	if n <= len(l.cfg.Zones) {
		peer.zone = l.cfg.Zones[n-1]
	}
	peer.forward, err = newForwarder("127.0.0.1:0", func(ctx context.Context) (net.Conn, error) {
		return host.dial(ctx, "tcp", net.JoinHostPort(peer.Address, apiPort))
	})
	if err != nil {
		return nil, errors.Join(err, host.close())
	}
	peer.API = "https://" + peer.forward.address()
	if l.cfg.Clocks {
		peer.clock = &clock{}
	}
	if l.cfg.Memory > 0 {
		if err := peer.limitMemory(l.cfg.Memory); err != nil {
			return nil, errors.Join(err, peer.close())
		}
	}
	if l.cfg.Disk > 0 {
		if err := peer.giveDisk(l.cfg.Disk); err != nil {
			return nil, errors.Join(err, peer.close())
		}
	}
	return peer, nil
}

func (l *Lab) startPeer(ctx context.Context, peer *Peer, args ...string) error {
	begun := time.Now()
	if err := peer.Start(append(args, l.cfg.JoinArgs...)...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	err := peer.Await(ctx)
	peer.Took = time.Since(begun)
	return err
}

// joinOthers adds every further peer through the first, all at once.
func (l *Lab) joinOthers(ctx context.Context) error {
	token, err := l.Peers[0].Command(ctx, "token", "create", "--quiet")
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, peer := range l.Peers[1:] {
		group.Go(func() error {
			return l.startPeer(ctx, peer, l.Peers[0].Address, "--token", strings.TrimSpace(token))
		})
	}
	return group.Wait()
}

// writeKubeconfig takes the founder's kubeconfig and puts the forwarded ports in the place of addresses that only the namespaces know.
func (l *Lab) writeKubeconfig(ctx context.Context) error {
	text, err := l.Peers[0].Command(ctx, "kubeconfig", "--all")
	if err != nil {
		return err
	}
	config, err := clientcmd.Load([]byte(text))
	if err != nil {
		return fmt.Errorf("reading the founder's kubeconfig: %w", err)
	}
	forwarded := map[string]string{}
	for _, peer := range l.Peers {
		forwarded["https://"+net.JoinHostPort(peer.Address, apiPort)] = peer.API
	}
	for name, cluster := range config.Clusters {
		address, ok := forwarded[cluster.Server]
		if !ok {
			return fmt.Errorf("cluster %s of the founder's kubeconfig is %s, which is no peer of this lab", name, cluster.Server)
		}
		cluster.Server = address
	}
	l.Kubeconfig = filepath.Join(l.Dir, "kubeconfig")
	return clientcmd.WriteToFile(*config, l.Kubeconfig)
}

// Cut kills a peer with everything on it and takes its cable off, as when a machine loses power.
func (l *Lab) Cut(peer *Peer) error {
	return errors.Join(l.underlay.cut(peer.host), peer.Kill())
}

// Mend puts the cable of a peer that was cut back. Start then brings the peer back, as when the machine has power again.
func (l *Lab) Mend(peer *Peer) error { return l.underlay.mend(peer.host) }

// Move gives a peer that does not run another address in the underlay: n (0, 1, …) is its place there, beyond those of all peers and
// of the client.
func (l *Lab) Move(peer *Peer, n int) error {
	address := l.underlay.address(maxPeers + 2 + n)
	if err := peer.host.readdress(address, l.underlay.prefix.Bits()); err != nil {
		return fmt.Errorf("moving %s to %s: %w", peer.Name, address, err)
	}
	peer.Address = address.String()
	return nil
}

// Close ends everything and removes every trace. It may be called on a lab that is only half made.
func (l *Lab) Close() error {
	var failed []error
	for _, peer := range l.Peers {
		failed = append(failed, l.Shake(peer, Line{}))
	}
	var group errgroup.Group
	for _, peer := range l.Peers {
		group.Go(peer.close)
	}
	failed = append(failed, group.Wait())
	if l.client != nil {
		failed = append(failed, l.client.close())
	}
	if l.underlay != nil {
		failed = append(failed, l.underlay.close())
	}
	if l.cgroup != "" {
		failed = append(failed, removeCgroups(l.cgroup))
	}
	if l.Dir != "" {
		failed = append(failed, os.RemoveAll(l.Dir))
	}
	return errors.Join(failed...)
}
