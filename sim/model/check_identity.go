package model

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// identityCheck looks at every container that starts: a pod of a StatefulSet is the only one of its name whose processes run, anywhere.
// It looks at machines, not at the store: what nobody knows of counts as well (D8).
type identityCheck struct {
	started map[types.NamespacedName][]start // those that may still run
}

// start is a container that was started on a node.
type start struct {
	node      *node
	container *container
}

func newIdentityCheck() identityCheck {
	return identityCheck{started: map[types.NamespacedName][]start{}}
}

func (c *identityCheck) look(m *Model, n *node, started *container) {
	if !started.identity {
		return
	}
	name := types.NamespacedName{Namespace: started.pod.Namespace, Name: started.pod.Name}
	running := slices.DeleteFunc(c.started[name], func(s start) bool {
		return s.node.pods[s.container.pod.UID] != s.container || !s.container.running
	})
	slices.SortFunc(running, func(a, b start) int {
		return cmp.Or(byIndex(a.node, b.node), cmp.Compare(a.container.pod.UID, b.container.pod.UID))
	})
	for _, other := range running {
		m.violate(checkerIdentity, "%s/%s runs on %s and on %s", name.Namespace, name.Name, other.node.name, n.name)
	}
	c.started[name] = append(running, start{n, started})
}
