package model

// restartsCheck asks of every container that is ended why: pods outlive the peers (D9), and losing a control replica never touches a running
// pod (D8). It is ended because its pod is deleted or no longer this node's, because the machine was fenced, or because it lost its power.
type restartsCheck struct{}

// Reasons for which containers are ended.
const (
	endDeleted = "its pod is deleted"
	endMoved   = "its pod is not this node's any more"
	endFenced  = "this node is cut off"
)

// ended follows every container that is stopped by its node.
func (restartsCheck) ended(m *Model, n *node, c *container, why string) {
	stored, there := m.shardOf(c.pod.Namespace).objects[keyOf(c.pod)]
	bound := there && stored.GetUID() == c.pod.UID && stored.GetDeletionTimestamp() == nil
	switch {
	case why == endFenced && c.identity:
	case why != "" && !bound:
	default:
		m.violate(checkerRestarts, "%s ends %s/%s (%q), which is still bound to it", n.name, c.pod.Namespace, c.pod.Name, why)
	}
}
