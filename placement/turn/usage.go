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
	// maxSilences is how often in a row a node may leave claims unanswered.
	maxSilences = 2
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

// Why a node is avoided, as FailedScheduling says it of a node that has room by its report.
const (
	reasonRefused = "node(s) refused a claim of room a moment ago"
	reasonSilent  = "node(s) did not answer claims of room"
)

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
	delete(l.silences, usage.Node)
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
	l.avoid(usage.Node, reasonRefused, now)
}

// avoid keeps pods from a node for a while.
func (l *Leader) avoid(node, why string, now time.Time) {
	l.closed[node] = now.Add(AvoidRefusing)
	l.view.Close(node, why)
}

// Silent takes in that a node has not answered at now; its pods wait. A message may be lost, and a node that is lost altogether is soon known
// to be. But one that lives and never answers, whose peer is of another version or broken, must not keep pods from nodes that have room: when
// it does not answer claims twice in a row, it is avoided as if it had refused them.
func (l *Leader) Silent(t *Turn, node string, now time.Time) {
	if r, known := l.reports[node]; known {
		l.reports[node] = report{r.usage, now} // it is asked again in its turn
	}
	claimed := false
	for _, decision := range t.decisions {
		if decision.Node == node {
			t.refused[decision.Pod.UID], claimed = true, true
		}
	}
	if !claimed {
		return
	}
	if l.silences[node]++; l.silences[node] >= maxSilences {
		l.avoid(node, reasonSilent, now)
	}
}

// reopen lets pods go to nodes again that were avoided long enough.
func (l *Leader) reopen(now time.Time) {
	for name, until := range l.closed {
		if !until.After(now) {
			delete(l.closed, name)
			l.view.Reopen(name)
		}
	}
}
