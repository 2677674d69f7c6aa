package model

// identityCheck looks at every container that starts: a pod of a StatefulSet is the only one of its name whose processes run, anywhere.
// It looks at machines, not at the store: what nobody knows of counts as well (D8).
type identityCheck struct{}

func (identityCheck) started(m *Model, n *node, started *container) {
	if !started.identity {
		return
	}
	for _, other := range m.nodes {
		for _, uid := range other.running() {
			c := other.pods[uid]
			if c != started && c.running && c.identity && c.pod.Namespace == started.pod.Namespace && c.pod.Name == started.pod.Name {
				m.violate(checkerIdentity, "%s/%s runs on %s and on %s", c.pod.Namespace, c.pod.Name, other.name, n.name)
			}
		}
	}
}
