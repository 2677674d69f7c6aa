package model

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// Observer is told what happens while a simulation runs, in the order in which it happens. It changes nothing: a run that is observed has
// the same trace as one that is not.
type Observer interface {
	Event(Event)
	Sample(Sample)
}

// EventKind says what happened.
type EventKind string

// The kinds of events, and which fields of Event they fill.
const (
	EventFault      EventKind = "fault"       // Fault; Nodes: whom it befell
	EventLeads      EventKind = "leads"       // Node leads Shard
	EventLeaderless EventKind = "leaderless"  // Shard has lost its leader
	EventLost       EventKind = "lost"        // Node was judged not to answer
	EventReady      EventKind = "ready"       // Node was judged ready
	EventFenced     EventKind = "fenced"      // Node stops what must not run twice
	EventConnected  EventKind = "connected"   // Node goes on after it was fenced
	EventEvicted    EventKind = "evicted"     // Pod was taken off Node
	EventBound      EventKind = "bound"       // Pod was placed on Node
	EventPodReady   EventKind = "pod ready"   // Pod answers on Node, and the store knows
	EventBraked     EventKind = "braked"      // Text: why evictions are held back
	EventDesired    EventKind = "as desired"  // after the last fault everything is as desired
	EventAstray     EventKind = "not desired" // not any more; Text: why
	EventJobEnded   EventKind = "job ended"   // Text: which, how, and with how many pods
	EventViolation  EventKind = "violation"   // Text: which checker found what
)

// Event is something that happened.
type Event struct {
	At    time.Duration // since the start
	Kind  EventKind
	Node  string
	Nodes []string
	Shard uint64
	Pod   string // NAMESPACE/NAME
	Fault Fault
	Text  string
}

// Sample is how things stand at a moment. The requests are what clients would have noticed at that moment: one asks each endpoint that a
// rule leads to, one wants to write to each shard.
type Sample struct {
	At                time.Duration
	Steps             uint64
	Nodes, NodesUp    int // machines that run and hear the others
	NodesReady        int // as the store has them
	Shards, Led       int // the meta shard included
	Wanted, Ready     int // pods
	Asked, Failed     int // requests to pods
	Writes, Unwritten int // requests to shards
}

// tally counts what samples tell, change by change.
type tally struct {
	next       time.Duration // sample
	ready      int           // pods
	nodesReady int
}

// emit tells the observer of an event.
func (m *Model) emit(e Event) {
	if m.cfg.Observer != nil {
		e.At = m.now
		m.cfg.Observer.Event(e)
	}
}

// sample tells the observer how things stand, for every moment up to a time at which it is due. It is no step, so that it leaves no trace.
func (m *Model) sample(until time.Duration) {
	if m.cfg.Observer == nil {
		return
	}
	for ; m.tally.next <= until; m.tally.next += max(m.cfg.SampleEvery, time.Millisecond) {
		m.cfg.Observer.Sample(m.stand(m.tally.next))
	}
}

func (m *Model) stand(at time.Duration) Sample {
	s := Sample{
		At: at, Steps: m.outcome.Steps, Nodes: len(m.nodes), NodesReady: m.tally.nodesReady, Shards: len(m.shards), Writes: len(m.shards),
		Ready: m.tally.ready,
	}
	for _, n := range m.nodes {
		if n.active() && !n.model.network.isolated(n) {
			s.NodesUp++
		}
	}
	for _, shard := range m.shards {
		if shard.leader != nil {
			s.Led++
		}
	}
	s.Unwritten = s.Writes - s.Led
	for _, w := range m.cfg.Workloads {
		s.Wanted += m.wanted(w)
	}
	for _, slice := range m.vip {
		for i := range slice.Endpoints {
			endpoint := &slice.Endpoints[i]
			if !ptr.Deref(endpoint.Conditions.Ready, true) || endpoint.TargetRef == nil {
				continue
			}
			s.Asked++
			if !m.answers(ptr.Deref(endpoint.NodeName, ""), endpoint.TargetRef.UID) {
				s.Failed++
			}
		}
	}
	return s
}

// observe follows a transaction: what became of pods and nodes. before are the objects of the changes as they were.
func (m *Model) observe(s *shard, changes []placement.Change, before []placement.Object) {
	if m.cfg.Observer == nil {
		return
	}
	seen := map[string]bool{}
	for i, change := range changes {
		key := keyOf(change.Object)
		if seen[key] {
			continue // an object of two changes has become something once
		}
		seen[key] = true
		now := s.objects[key]
		switch change.Object.(type) {
		case *corev1.Node:
			m.observeNode(readiness(before[i]), readiness(now), change.Object.GetName())
		case *batchv1.Job:
			m.observeJob(before[i], now)
		case *corev1.Pod:
			old, _ := before[i].(*corev1.Pod)
			pod, _ := now.(*corev1.Pod)
			m.observePod(old, pod)
		}
	}
}

// readiness is a node's, as the store has it; empty for none.
func readiness(o placement.Object) corev1.ConditionStatus {
	if node, ok := o.(*corev1.Node); ok && node != nil {
		if ready := placement.NodeCondition(node, corev1.NodeReady); ready != nil {
			return ready.Status
		}
	}
	return ""
}

func (m *Model) observeNode(before, now corev1.ConditionStatus, name string) {
	if before == now {
		return
	}
	if now == corev1.ConditionTrue {
		m.tally.nodesReady++
		m.emit(Event{Kind: EventReady, Node: name})
		return
	}
	if before == corev1.ConditionTrue {
		m.tally.nodesReady--
		m.emit(Event{Kind: EventLost, Node: name})
	}
}

func (m *Model) observePod(before, now *corev1.Pod) {
	was, is := before != nil && counts(before), now != nil && counts(now)
	switch {
	case is && !was:
		m.tally.ready++
		m.emit(Event{Kind: EventPodReady, Pod: now.Namespace + "/" + now.Name, Node: now.Spec.NodeName})
	case was && !is:
		m.tally.ready--
	}
	if now != nil && now.Spec.NodeName != "" && (before == nil || before.Spec.NodeName == "") {
		m.emit(Event{Kind: EventBound, Pod: now.Namespace + "/" + now.Name, Node: now.Spec.NodeName})
	}
}

// counts tells whether a pod is one of those that users wanted to be ready.
func counts(pod *corev1.Pod) bool {
	return placement.Ready(pod) && pod.DeletionTimestamp == nil && !placement.Finished(pod)
}

// befallen are the names of a fault's targets.
func befallen(nodes []*node) []string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.name
	}
	slices.Sort(names)
	return names
}
