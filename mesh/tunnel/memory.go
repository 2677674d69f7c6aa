package tunnel

import "sync"

// Memory is a Device without a kernel, for simulation: it does what a Plan means and carries no packets.
type Memory struct {
	mu   sync.Mutex
	have Have
}

// Name is "memory".
func (m *Memory) Name() string { return "memory" }

// Userspace is false: nothing ends with this process but the memory.
func (m *Memory) Userspace() bool { return false }

// Have returns what the plans so far have made.
func (m *Memory) Have() (Have, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.have, nil
}

// Configure carries out plan.
func (m *Memory) Configure(plan Plan) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have = m.have.Apply(plan)
	return nil
}

// Peers reports the peers, without traffic.
func (m *Memory) Peers() ([]PeerStatus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []PeerStatus
	for _, p := range m.have.Peers {
		out = append(out, PeerStatus{PublicKey: p.PublicKey, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs})
	}
	return out, nil
}

// Close forgets everything.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have = Have{}
	return nil
}

var _ Device = (*Memory)(nil)
