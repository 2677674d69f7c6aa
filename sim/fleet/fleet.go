// Package fleet runs real peers, whole ones, in one process under virtual time: dragonboat, serf, the Kubernetes API and everything
// between are what runs on hosts; only the network, the store's disk, the clock and the four seams to the kernel are replaced.
//
// It is the storey above sim/model: not bit-exact, since the order in which goroutines run is nobody's to choose, but with all the code
// that the model leaves out. Faults are drawn from a seed, and the seed is what a failure prints.
//
// A fleet lives inside a bubble of testing/synctest. What blocks must therefore be a channel, a lock's condition or a timer; sockets,
// which the bubble cannot see, would stop the clock.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"shoal/peer"
	"shoal/peer/identity"
)

// port is the one port of every peer.
const port = 7443

// Epoch is when a fleet begins. A bubble begins in 2000, before revisions can count; and parts of upstream's code remember when the process
// began, which must not lie in a fleet's future.
var Epoch = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)

// lingering is how long goroutines of libraries outlive what they belong to, until their timers end them. A bubble's clock stands still once
// its test is over. Upstream's error handler sleeps until a moment that it remembers from the bubble before, which began at the same time: for
// as long as that one lasted.
const lingering = 15 * time.Minute

// Fleet is a cluster in one process.
type Fleet struct {
	Network *Network
	Log     *slog.Logger

	dir   string
	token string
	ctx   context.Context
	end   context.CancelFunc
	never chan struct{}

	mu       sync.Mutex
	machines []*Machine
	lives    map[string]*life // by machine
	client   netip.Addr
	watchers sync.WaitGroup
}

// life is one run of a peer.
type life struct {
	stop   context.CancelFunc
	killed chan struct{} // closed by a kill: nothing it does has an effect any more
	done   chan struct{}
	err    error
	inside atomic.Pointer[peer.Inside] // nil until it serves
}

func (l *life) alive() bool {
	select {
	case <-l.killed:
		return false
	default:
		return true
	}
}

// Open makes a fleet without machines. dir is for the small files of the peers. It must be called in a bubble.
func Open(dir string, seed uint64, log *slog.Logger) *Fleet {
	if now := time.Now(); now.Before(Epoch) {
		time.Sleep(Epoch.Sub(now))
	}
	// Upstream's code waits for this channel in goroutines of the bubble, so it must be one of the bubble's.
	never := make(chan struct{})
	wait.NeverStop = never
	ctx, end := context.WithCancel(context.Background())
	return &Fleet{
		Network: NewNetwork(seed), Log: log, dir: dir, ctx: ctx, end: end, never: never, lives: map[string]*life{},
		client: netip.MustParseAddr("198.51.100.1"),
	}
}

// Add makes a machine. The first founds the cluster when it is started, every other joins it.
func (f *Fleet) Add(zone string) *Machine {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := len(f.machines)
	address := netip.AddrFrom4([4]byte{192, 0, 2 + byte(i/250), byte(1 + i%250)})
	name := fmt.Sprintf("peer-%d", i+1)
	m := newMachine(f.Network, name, address, filepath.Join(f.dir, name), filepath.Join(f.dir, "proc"))
	if err := errors.Join(m.disk.Make(m.dir), makeProc(m.proc)); err != nil {
		panic(err) // a file system in memory, and a folder of the test's
	}
	m.Zone = zone
	f.machines = append(f.machines, m)
	f.watchers.Go(func() { m.watch(f.ctx) })
	return m
}

// Machines are all machines.
func (f *Fleet) Machines() []*Machine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Machine(nil), f.machines...)
}

// Start starts the peer of a machine: `peer join`. It returns at once.
func (f *Fleet) Start(m *Machine) {
	ctx, stop := context.WithCancel(f.ctx)
	l := &life{stop: stop, killed: make(chan struct{}), done: make(chan struct{})}
	f.mu.Lock()
	if old := f.lives[m.Name]; old != nil {
		select {
		case <-old.done:
		default:
			panic("fleet: " + m.Name + " runs already")
		}
	}
	f.lives[m.Name] = l
	cfg := peer.Config{
		DataDir: m.dir, Name: m.Name, Advertise: m.Address.String(), Port: port, Zone: m.Zone, Version: "fleet", Output: io.Discard,
		Logger: f.Log.With("peer", m.Name), Machine: process{m, l.alive}.parts(),
	}
	cfg.Machine.Observe = func(inside peer.Inside) {
		m.learn(inside.PeerID)
		l.inside.Store(&inside)
	}
	if m != f.machines[0] {
		cfg.Addresses = []string{net.JoinHostPort(f.machines[0].Address.String(), fmt.Sprint(port))}
		cfg.Token = f.token
	}
	f.mu.Unlock()
	go func() {
		defer close(l.done)
		l.err = peer.Run(ctx, cfg)
		if l.err != nil && l.alive() && ctx.Err() == nil {
			f.Log.Error("a peer has ended by itself", "peer", m.Name, "error", l.err)
		}
	}()
}

// Stop ends a peer in order, as SIGTERM does, and waits until it has.
func (f *Fleet) Stop(m *Machine) error {
	l := f.life(m)
	l.stop()
	<-l.done
	return l.err
}

// Kill ends a peer's process as kill -9 does: its connections break, and what it had not synced is not there for the next one.
// Containers run on.
func (f *Fleet) Kill(m *Machine) {
	l := f.life(m)
	m.disk.Fail()
	close(l.killed)
	f.Network.Reset(m.Address)
	l.stop()
	<-l.done // what is left of it runs to its end behind closed doors
	f.Network.Reset(m.Address)
	m.disk.Restore()
}

// Crash is the loss of power of a whole machine: nobody is told, connections to it stall.
func (f *Fleet) Crash(m *Machine) {
	f.Isolate(m, true)
	f.Kill(m)
	m.crash()
}

// Running tells whether a peer runs on the machine.
func (f *Fleet) Running(m *Machine) bool {
	f.mu.Lock()
	l := f.lives[m.Name]
	f.mu.Unlock()
	if l == nil {
		return false
	}
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// Inside is what checkers may look into on a machine whose peer serves.
func (f *Fleet) Inside(m *Machine) (peer.Inside, bool) {
	f.mu.Lock()
	l := f.lives[m.Name]
	f.mu.Unlock()
	if l == nil || !l.alive() || !f.Running(m) {
		return peer.Inside{}, false
	}
	if inside := l.inside.Load(); inside != nil {
		return *inside, true
	}
	return peer.Inside{}, false
}

func (f *Fleet) life(m *Machine) *life {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lives[m.Name]
	if l == nil {
		panic("fleet: " + m.Name + " was never started")
	}
	return l
}

// Isolate cuts a machine off from all others, and from clients, or joins it again.
func (f *Fleet) Isolate(m *Machine, cut bool) {
	for _, other := range f.Machines() {
		if other != m {
			f.Network.Cut(m.Address, other.Address, cut)
			f.Network.Cut(other.Address, m.Address, cut)
		}
	}
	f.Network.Cut(m.Address, f.client, cut)
	f.Network.Cut(f.client, m.Address, cut)
}

// Config is a client's way to the API of one peer, as the administrator.
func (f *Fleet) Config(m *Machine) (*rest.Config, error) {
	text, err := os.ReadFile(filepath.Join(m.dir, "kubeconfig"))
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		return nil, err
	}
	config.Host = "https://" + net.JoinHostPort(m.Address.String(), fmt.Sprint(port))
	config.QPS, config.Timeout = -1, 0
	config.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return f.Network.dial(ctx, f.client, address)
	}
	return config, nil
}

// Client is a client of one peer's API. Close it, so that its connections end before the fleet does.
func (f *Fleet) Client(m *Machine) (*kubernetes.Clientset, error) {
	config, err := f.Config(m)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// Grow makes n machines, starts their peers one after the other and waits until the API of each is ready. Zones may be empty; machines
// take them in turn.
func (f *Fleet) Grow(ctx context.Context, n int, zones ...string) error {
	for i := range n {
		zone := ""
		if len(zones) > 0 {
			zone = zones[i%len(zones)]
		}
		m := f.Add(zone)
		f.Start(m)
		if err := f.AwaitReady(ctx, m); err != nil {
			return err
		}
		if f.token == "" {
			if err := f.makeToken(ctx, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// AwaitReady waits until a peer's API is ready.
func (f *Fleet) AwaitReady(ctx context.Context, m *Machine) error {
	var last error
	for ctx.Err() == nil {
		if !f.Running(m) {
			return fmt.Errorf("%s has ended: %w", m.Name, f.life(m).err)
		}
		if last = f.ready(ctx, m); last == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s is not ready: %w", m.Name, errors.Join(ctx.Err(), last))
}

func (f *Fleet) ready(ctx context.Context, m *Machine) error {
	client, err := f.Client(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

func (f *Fleet) makeToken(ctx context.Context, m *Machine) error {
	self, err := identity.Load(m.dir, time.Now())
	if err != nil {
		return err
	}
	client, err := f.Client(m)
	if err != nil {
		return err
	}
	token, err := identity.NewToken(self.Cluster.Pin())
	if err != nil {
		return err
	}
	secret := token.BootstrapSecret(time.Now().Add(365*24*time.Hour), "the fleet's")
	if _, err := client.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return err
	}
	f.token = token.String()
	return nil
}

// Close ends all peers, at once and in no order.
func (f *Fleet) Close() {
	f.end()
	f.mu.Lock()
	lives := f.lives
	f.mu.Unlock()
	for _, l := range lives {
		<-l.done
	}
	f.watchers.Wait()
	close(f.never)
	time.Sleep(lingering)
}
