package podnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Memory is Links without a kernel, for simulation. One Memory outlives the Networks opened on it, as a kernel does.
type Memory struct {
	mu   sync.Mutex
	node Node
	pods map[string]Attachment
}

// Setup remembers the node.
func (m *Memory) Setup(_ context.Context, n Node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = n
	if m.pods == nil {
		m.pods = map[string]Attachment{}
	}
	return nil
}

// Attach records a connection; like the kernel it refuses a second one in the same namespace.
func (m *Memory) Attach(_ context.Context, a Attachment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods == nil {
		return errors.New("the pod network is not set up")
	}
	for _, other := range m.pods {
		if other.NetNS == a.NetNS || other.IP == a.IP || other.PodUID == a.PodUID {
			return fmt.Errorf("pod %s at %s in %s is there already", other.PodUID, other.IP, other.NetNS)
		}
	}
	m.pods[a.PodUID] = a
	return nil
}

// Detach forgets a connection.
func (m *Memory) Detach(_ context.Context, podUID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, podUID)
	return nil
}

// Existing lists the connections by pod UID.
func (m *Memory) Existing(context.Context) ([]Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Collect(maps.Values(m.pods))
	slices.SortFunc(out, func(a, b Attachment) int { return strings.Compare(a.PodUID, b.PodUID) })
	for i := range out {
		out[i].NetNS = ""
	}
	return out, nil
}

// Teardown forgets everything.
func (m *Memory) Teardown(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node, m.pods = Node{}, nil
	return nil
}

var _ Links = (*Memory)(nil)
