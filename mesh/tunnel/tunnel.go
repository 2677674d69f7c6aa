package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// Device is one WireGuard interface: the kernel's, one inside this process, or a simulated one.
type Device interface {
	// Name is the interface's name.
	Name() string
	// Userspace reports whether packets pass through this process, so that the tunnel ends with it.
	Userspace() bool
	// Have reads the configuration and the routes through the interface.
	Have() (Have, error)
	// Configure carries out plan: first the peers in one call, then the routes. After an error any part may be in effect.
	Configure(plan Plan) error
	// Peers reports the traffic per peer; IDs are empty.
	Peers() ([]PeerStatus, error)
	// Close removes the interface.
	Close() error
}

// Config says which interface Open makes.
type Config struct {
	Interface string // at most 15 bytes; unique on the machine, also across network namespaces
	MTU       int    // bytes; 0 means DefaultMTU
	Logger    *slog.Logger
}

// Tunnel keeps a Device as wanted.
type Tunnel struct {
	device Device
	logger *slog.Logger

	mu   sync.Mutex
	have *Have // what the device has since the last successful Sync; nil: ask it
	ids  map[Key]string
}

// New wraps a device. Open is the usual way to get one.
func New(device Device, logger *slog.Logger) *Tunnel {
	if logger == nil {
		logger = slog.Default()
	}
	return &Tunnel{device: device, logger: logger, ids: map[Key]string{}}
}

// Sync makes the tunnel what want says, in one configuration call. Peers that Want.Admit leaves out are reported as
// ErrConflict after the rest was applied. After any other error the next Sync reads the device anew.
func (t *Tunnel) Sync(_ context.Context, want Want) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	want, conflicts := want.Admit()
	if t.have == nil {
		have, err := t.device.Have()
		if err != nil {
			return errors.Join(conflicts, fmt.Errorf("read tunnel %s: %w", t.device.Name(), err))
		}
		t.have = &have
	}
	plan := Diff(want, *t.have)
	if plan.Empty() {
		return conflicts
	}
	if err := t.device.Configure(plan); err != nil {
		t.have = nil
		return errors.Join(conflicts, fmt.Errorf("configure tunnel %s: %w", t.device.Name(), err))
	}
	after := t.have.Apply(plan)
	t.have = &after
	clear(t.ids)
	for _, p := range want.Peers {
		t.ids[p.PublicKey] = p.ID
	}
	t.logger.Debug("tunnel configured", "interface", t.device.Name(),
		"added", len(plan.Add), "updated", len(plan.Update), "removed", len(plan.Remove))
	return conflicts
}

// Refresh makes the next Sync compare with the device itself, undoing what others changed there meanwhile (and
// endpoints that the peers' own packets have moved).
func (t *Tunnel) Refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.have = nil
}

// Status is the tunnel as it is.
type Status struct {
	Interface string
	Userspace bool
	Peers     []PeerStatus
}

// Status reads the device.
func (t *Tunnel) Status() (Status, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peers, err := t.device.Peers()
	if err != nil {
		return Status{}, fmt.Errorf("read tunnel %s: %w", t.device.Name(), err)
	}
	for i := range peers {
		peers[i].ID = t.ids[peers[i].PublicKey]
	}
	return Status{Interface: t.device.Name(), Userspace: t.device.Userspace(), Peers: peers}, nil
}

// Interface is the interface's name.
func (t *Tunnel) Interface() string { return t.device.Name() }

// Close removes the interface and with it the routes.
func (t *Tunnel) Close() error { return t.device.Close() }
