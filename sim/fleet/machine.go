package fleet

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/consensus/consensustest"
	"shoal/mesh/podnet"
	"shoal/mesh/tunnel"
	"shoal/mesh/vip"
	"shoal/peer"
	"shoal/runtime/containerd/fence"
	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

// adminPort stands for the socket of local administration, which only the machine itself can reach.
const adminPort = "0.0.0.0:1"

// Image is the one image that every machine of a fleet holds.
const Image = "fleet.local/app:1"

// Machine is one host of a fleet. It outlives the peers that run on it: its containers go on when a peer's process dies.
type Machine struct {
	Name    string
	Address netip.Addr
	Zone    string

	network *Network
	dir     string
	proc    string
	disk    *consensustest.Disk
	links   *podnet.Memory
	device  *tunnel.Memory
	rules   *vip.Memory
	volumes *podstest.Volumes
	engine  *podstest.Engine

	mu      sync.Mutex
	renewed time.Time // the watchdog's: until when, or since when, the lease holds
	known   map[string]pods.SandboxSpec
	again   []string // pods of which a container was started again
	peerID  string   // of the last peer that served here

	skew atomic.Int64 // how far the wall clock is ahead, in nanoseconds
}

// procFiles are the memory and the processes of every machine of a fleet, as /proc tells them. The host's own would make it a matter of luck whether
// a peer thinks that it is short of memory and leads nothing.
var procFiles = map[string]string{
	"meminfo":                   "MemTotal: 8388608 kB\nMemFree: 7340032 kB\nMemAvailable: 7864320 kB\n",
	"stat":                      "cpu 100 0 100 1000 0 0 0 0 0 0\nbtime 2208988800\n",
	"sys/kernel/pid_max":        "4194304\n",
	"sys/kernel/random/boot_id": "00000000-0000-4000-8000-000000000000\n",
}

// makeProc writes that into a folder.
func makeProc(dir string) error {
	for name, text := range procFiles {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			return err
		}
	}
	return nil
}

func newMachine(network *Network, name string, address netip.Addr, dir, proc string) *Machine {
	return &Machine{
		Name: name, Address: address, network: network, dir: dir, proc: proc, disk: consensustest.NewDisk(),
		links: &podnet.Memory{}, device: &tunnel.Memory{}, rules: &vip.Memory{}, volumes: &podstest.Volumes{},
		engine: newEngine(), known: map[string]pods.SandboxSpec{},
	}
}

func newEngine() *podstest.Engine {
	engine := podstest.NewEngine(Image)
	engine.Latency = 5 * time.Millisecond
	return engine
}

// process is one life of a peer on a machine. After it was killed nothing that it still does reaches network, disk or containers.
type process struct {
	machine *Machine
	alive   func() bool
}

// parts are what the peer stands on.
func (p process) parts() peer.Machine {
	m := p.machine
	return peer.Machine{
		Listen: func(_ context.Context, address string) (net.Listener, error) {
			return m.network.listen(m.Address, address)
		},
		ListenPacket: func(address string) (net.PacketConn, error) { return m.network.listenPacket(m.Address, address) },
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			if !p.alive() {
				return nil, net.ErrClosed
			}
			return m.network.dial(ctx, m.Address, address)
		},
		Admin:   func(string) (net.Listener, error) { return m.network.listen(m.Address, adminPort) },
		Now:     m.now,
		Elapsed: m.elapsed,
		Proc:    m.proc,
		StoreFS: m.disk.FS(), Frugal: true,
		Runtime: runtime{Engine: m.engine, process: p},
		Links:   m.links, Device: m.device, Ruleset: m.rules, Volumes: usage{m.volumes},
		DialPod: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
	}
}

// usage adds that volumes hold nothing.
type usage struct{ *podstest.Volumes }

// Usage implements peer.Volumes.
func (usage) Usage(*corev1.Pod) map[string]pods.FSUsage { return nil }

// runtime is the machine's engine as one process of the peer sees it.
type runtime struct {
	*podstest.Engine
	process process
}

var _ peer.Runtime = runtime{}

// CreateSandbox remembers which pods must never run twice, for the watchdog.
func (r runtime) CreateSandbox(ctx context.Context, spec pods.SandboxSpec) (pods.Sandbox, error) {
	if !r.process.alive() {
		return pods.Sandbox{}, pods.ErrUnavailable
	}
	m := r.process.machine
	m.mu.Lock()
	m.known[spec.PodUID] = spec
	m.mu.Unlock()
	return r.Engine.CreateSandbox(ctx, spec)
}

// Start refuses what must not run twice while the lease is old, as the host's runtime does.
func (r runtime) Start(ctx context.Context, id string) (pods.ContainerState, error) {
	if !r.process.alive() {
		return pods.ContainerState{}, pods.ErrUnavailable
	}
	if spec, ok := r.Spec(id); ok && !r.process.machine.mayStart(spec) {
		return pods.ContainerState{}, pods.ErrUnavailable
	}
	return r.Engine.Start(ctx, id)
}

// Stop implements pods.Containers.
func (r runtime) Stop(ctx context.Context, id string, grace time.Duration) (pods.ContainerState, error) {
	if !r.process.alive() {
		return pods.ContainerState{}, pods.ErrUnavailable
	}
	return r.Engine.Stop(ctx, id, grace)
}

// Kill implements pods.Containers.
func (r runtime) Kill(ctx context.Context, id string) (pods.ContainerState, error) {
	if !r.process.alive() {
		return pods.ContainerState{}, pods.ErrUnavailable
	}
	return r.Engine.Kill(ctx, id)
}

// RemoveSandbox implements pods.Sandboxes.
func (r runtime) RemoveSandbox(ctx context.Context, podUID string) error {
	if !r.process.alive() {
		return pods.ErrUnavailable
	}
	return r.Engine.RemoveSandbox(ctx, podUID)
}

// Info has no folder of images: the disk of whoever runs the simulation is not this machine's.
func (r runtime) Info(ctx context.Context) (pods.Info, error) {
	info, err := r.Engine.Info(ctx)
	info.ImageRoot = ""
	return info, err
}

// Renewed implements peer.Runtime.
func (r runtime) Renewed(at time.Time) error { return r.beat(at, 0) }

// Restarting implements peer.Runtime. As in fence.Dir.Extend, a lease that is not kept is not extended.
func (r runtime) Restarting(until time.Time) error {
	return r.beat(until.Add(-fence.KillAfter), fence.Kept)
}

// beat notes a renewal, unless the last one is as old as that; 0 is any age.
func (r runtime) beat(at time.Time, kept time.Duration) error {
	if !r.process.alive() {
		return pods.ErrUnavailable
	}
	m := r.process.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if kept == 0 || time.Since(m.renewed) < kept {
		m.renewed = at
	}
	return nil
}

// Close implements peer.Runtime.
func (r runtime) Close(gone bool) error {
	if gone && r.process.alive() {
		r.process.machine.engine.Crash()
	}
	return nil
}

func (m *Machine) mayStart(spec pods.ContainerSpec) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known[spec.PodUID].Identity {
		if spec.Attempt > 0 {
			m.again = append(m.again, spec.Namespace+"/"+spec.PodName)
		}
		return true
	}
	return time.Since(m.renewed) < fence.After
}

// watch is the machine's watchdog (runtime/containerd/fence): it kills what must not run twice when nobody renews the lease.
func (m *Machine) watch(ctx context.Context) {
	for {
		if pause(ctx, 500*time.Millisecond) != nil {
			return
		}
		m.mu.Lock()
		var victims []string
		if !m.renewed.IsZero() && time.Since(m.renewed) >= fence.KillAfter {
			for _, uid := range slices.Sorted(maps.Keys(m.known)) {
				if m.known[uid].Identity {
					victims = append(victims, uid)
				}
			}
		}
		m.mu.Unlock()
		for _, uid := range victims {
			m.engine.ExitPod(uid, 137)
		}
	}
}

// running are the pods with a running container that must never run twice, by namespace and name.
func (m *Machine) identities() []string {
	var names []string
	for _, uid := range m.engine.RunningPods() {
		m.mu.Lock()
		spec := m.known[uid]
		m.mu.Unlock()
		if spec.Identity {
			names = append(names, spec.Namespace+"/"+spec.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// crash is the loss of power: containers end, and so does what was not synced to the disk.
func (m *Machine) crash() {
	m.engine.Crash()
	*m.links, *m.device, *m.rules = podnet.Memory{}, tunnel.Memory{}, vip.Memory{}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known, m.renewed = map[string]pods.SandboxSpec{}, time.Time{}
}

// addresses are those of the pods that run here.
func (m *Machine) addresses() []string {
	attached, err := m.links.Existing(context.Background())
	if err != nil {
		return nil
	}
	running := m.engine.RunningPods()
	var out []string
	for _, a := range attached {
		if slices.Contains(running, a.PodUID) {
			out = append(out, a.IP.String())
		}
	}
	return out
}

// SetClock sets the wall clock wrong by so much; 0 sets it right.
func (m *Machine) SetClock(ahead time.Duration) { m.skew.Store(int64(ahead)) }

// now is the wall clock.
func (m *Machine) now() time.Time { return time.Now().Add(time.Duration(m.skew.Load())) }

// elapsed runs by up to four hundredths faster or slower than true time, at a rate of the machine's own.
func (m *Machine) elapsed() time.Duration {
	own := m.Address.As4()
	return time.Duration(float64(time.Since(Epoch)) * (1 + float64(own[3]%9)/100 - 0.04))
}

// learn notes who serves here.
func (m *Machine) learn(peerID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peerID = peerID
}

// ID is that of the last peer that served here, "" before the first.
func (m *Machine) ID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peerID
}

// runningIn are the names of a namespace's pods that run here.
func (m *Machine) runningIn(namespace string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, uid := range m.engine.RunningPods() {
		if spec := m.known[uid]; spec.Namespace == namespace {
			names = append(names, spec.Name)
		}
	}
	return names
}

// restarted are the pods of which a container was started again, since the last call; those with an identity excepted, which fencing
// may end.
func (m *Machine) restarted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := m.again
	m.again = nil
	return names
}
