package model

import (
	"maps"
	"slices"
)

// changes is what has changed since a checker looked last, so that it looks again at that only. Every checker that looks at states has one of
// its own, from Model.follow. A node counts as changed when it starts, dies, hangs, is cut off or comes back, and when what it runs or
// holds room for changes; a namespace when a pod in it, its container, a rule or one of its nodes does.
type changes struct {
	nodes      map[*node]struct{}
	namespaces map[string]struct{}
}

// follow returns a feed of all that changes from now on.
func (m *Model) follow() *changes {
	c := &changes{nodes: map[*node]struct{}{}, namespaces: map[string]struct{}{}}
	m.followers = append(m.followers, c)
	return c
}

// takeNamespaces returns the namespaces that have changed, sorted, and forgets them.
func (c *changes) takeNamespaces() []string {
	namespaces := slices.Sorted(maps.Keys(c.namespaces))
	clear(c.namespaces)
	return namespaces
}

func byIndex(a, b *node) int { return a.index - b.index }

// changedPod notes that a pod, its binding or its container has changed on a node; n may be nil.
func (m *Model) changedPod(namespace string, n *node) {
	for _, c := range m.followers {
		c.namespaces[namespace] = struct{}{}
		if n != nil {
			c.nodes[n] = struct{}{}
		}
	}
}

// changedRules notes that the rules of a namespace's Services have changed.
func (m *Model) changedRules(namespace string) {
	for _, c := range m.followers {
		c.namespaces[namespace] = struct{}{}
	}
}

// changedRoom notes that what a node holds room for may have changed.
func (m *Model) changedRoom(n *node) {
	for _, c := range m.followers {
		c.nodes[n] = struct{}{}
	}
}

// changed notes that a node is reached or answers otherwise than before, and so do all pods on it.
func (n *node) changed() {
	for _, c := range n.model.followers {
		c.nodes[n] = struct{}{}
		for _, bound := range n.model.checks.bound[n.name] {
			c.namespaces[bound.pod.Namespace] = struct{}{}
		}
		for _, container := range n.pods {
			c.namespaces[container.pod.Namespace] = struct{}{}
		}
	}
}
