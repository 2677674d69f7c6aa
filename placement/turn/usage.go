package turn

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

const (
	// refreshUsage is how old a node's report may be while pods wait for room.
	refreshUsage = time.Second
	// maxRefresh bounds the nodes that are asked for a report, and nothing else, in one turn.
	maxRefresh = 64
)

// usageRef stands for old reports among the questions.
var usageRef = placement.Ref{Kind: "Usage"}

// report is what a node has said last of pods of other shards.
type report struct {
	usage placement.NodeUsage
	at    time.Time
}

// closedNode is a node that has refused a claim, and what it has reported.
type closedNode struct {
	usage placement.NodeUsage
	until time.Time
}

// Claims are the pods for which each node is to be asked for room, in the order of the decisions. A node with none is asked for its report
// only: nothing else tells this leader that pods of other shards have left.
func (t *Turn) Claims() map[string][]*corev1.Pod {
	byNode := map[string][]*corev1.Pod{}
	for _, node := range t.refresh {
		byNode[node] = nil
	}
	for _, decision := range t.decisions {
		if decision.Node != "" {
			byNode[decision.Node] = append(byNode[decision.Node], decision.Pod)
		}
	}
	return byNode
}

// chooseRefresh picks the nodes with the oldest reports of foreign pods, as long as some pod waits.
func (l *Leader) chooseRefresh(t *Turn, now time.Time) {
	if len(l.reports) == 0 || !l.view.AnyPending() {
		return
	}
	var old []string
	for name, r := range l.reports {
		// Who is lost would only be waited for.
		if node, known := l.view.Node(name); known && !node.Lost() && now.Sub(r.at) >= refreshUsage {
			old = append(old, name)
		}
	}
	slices.SortFunc(old, func(a, b string) int {
		return cmp.Or(l.reports[a].at.Compare(l.reports[b].at), cmp.Compare(a, b))
	})
	t.refresh = old[:min(len(old), maxRefresh)]
	l.recheck(usageRef, now.Add(refreshUsage))
}

// Answered takes in what a node has said at now: what it has given to pods of other shards, and which of the pods it refused.
func (l *Leader) Answered(t *Turn, usage placement.NodeUsage, refused []types.UID, now time.Time) {
	l.view.SetUsage(usage)
	if usage.Granted.Pods > 0 {
		l.reports[usage.Node] = report{usage, now}
	} else {
		delete(l.reports, usage.Node)
	}
	if len(refused) == 0 {
		return
	}
	for _, uid := range refused {
		t.refused[uid] = true
	}
	// Take the node for full.
	l.closed[usage.Node] = closedNode{usage: usage, until: now.Add(AvoidRefusing)}
	if node, ok := l.view.Node(usage.Node); ok {
		usage.Granted = usage.Granted.Plus(node.Allocatable)
		l.view.SetUsage(usage)
	}
}

// Silent takes in that a node has not answered at now; its pods wait.
func (l *Leader) Silent(t *Turn, node string, now time.Time) {
	if r, known := l.reports[node]; known {
		l.reports[node] = report{r.usage, now} // it is asked again in its turn
	}
	for _, decision := range t.decisions {
		if decision.Node == node {
			t.refused[decision.Pod.UID] = true
		}
	}
}

// reopen takes nodes for what they have reported, once they were avoided long enough.
func (l *Leader) reopen(now time.Time) {
	for name, node := range l.closed {
		if !node.until.After(now) {
			delete(l.closed, name)
			l.view.SetUsage(node.usage)
		}
	}
}
