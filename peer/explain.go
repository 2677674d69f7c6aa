package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"shoal/peer/admin"
	"shoal/placement/schedule"
)

// explainPath is where a shard's leader tells, on serviceNode, how it sees the placement of a pod.
const explainPath = "/explain"

// explainRequest names a pod.
type explainRequest struct {
	Shard     uint64 `json:"shard"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
}

// errNotLeading is the answer of a peer that does not lead the shard, or not any more.
var errNotLeading = errors.New("this peer does not lead the shard: ask again")

// leading are the leaders' loops of this peer, by shard.
type leading struct {
	lock sync.Mutex
	by   map[uint64]*leader
}

// set notes a loop that runs, until the returned function is called.
func (l *leading) set(shard uint64, loop *leader) (end func()) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.by == nil {
		l.by = map[uint64]*leader{}
	}
	l.by[shard] = loop
	return func() {
		l.lock.Lock()
		defer l.lock.Unlock()
		if l.by[shard] == loop {
			delete(l.by, shard)
		}
	}
}

func (l *leading) of(shard uint64) *leader {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.by[shard]
}

// ask has the loop do something between two turns, with the state that it owns.
func (l *leader) ask(ctx context.Context, do func()) error {
	done := make(chan struct{})
	select {
	case l.asks <- func() { defer close(done); do() }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// explain answers from the view of a leader of this peer.
func (p *Peer) explain(ctx context.Context, in explainRequest) (*admin.Placement, error) {
	loop := p.leading.of(in.Shard)
	if loop == nil {
		return nil, errNotLeading
	}
	out := &admin.Placement{Namespace: in.Namespace, Pod: in.Pod, Shard: in.Shard, Leader: p.self.Name}
	found := false
	err := loop.ask(ctx, func() {
		view := loop.state.View()
		pod, ok := view.Pod(in.Namespace, in.Pod)
		if !ok {
			return
		}
		found = true
		out.On = pod.Object.Spec.NodeName
		describePlacement(out, schedule.Explain(view, pod.Object, time.Now()))
	})
	if err != nil {
		return nil, fmt.Errorf("the shard's leader is busy: %w", err)
	}
	if !found {
		return nil, fmt.Errorf("pod %s/%s does not exist", in.Namespace, in.Pod)
	}
	return out, nil
}

func describePlacement(out *admin.Placement, e schedule.Explanation) {
	out.Waits, out.Node, out.Message = e.Waits, e.Node, e.Message
	if e.Preempt != nil {
		out.Preempts = &admin.Preemption{Node: e.Preempt.Node, Violations: e.Preempt.Violations}
		for _, victim := range e.Preempt.Victims {
			out.Preempts.Victims = append(out.Preempts.Victims, victim.Namespace+"/"+victim.Name)
		}
	}
	for _, node := range e.Nodes {
		out.Nodes = append(out.Nodes, admin.NodePlacement{Node: node.Node, Reasons: node.Reasons, Scores: node.Scores, Total: node.Total})
	}
}

// explainPlacement asks the leader of the pod's shard, which may be another peer.
func (p *Peer) explainPlacement(ctx context.Context, namespace, pod string) (*admin.Placement, error) {
	if !p.serving.Load() {
		return nil, errStarting
	}
	shard, err := p.directory.Locate(ctx, namespace)
	if err != nil {
		return nil, err
	}
	request := explainRequest{Shard: shard, Namespace: namespace, Pod: pod}
	status, err := p.host.Where(ctx, shard)
	switch {
	case err != nil:
		return nil, err
	case status.Leader == "":
		return nil, fmt.Errorf("shard %d has no leader: nobody decides about pods of namespace %s", shard, namespace)
	case status.Leader == p.self.ID:
		return p.explain(ctx, request)
	}
	var out admin.Placement
	return &out, p.nodes.post(ctx, status.Leader, explainPath, request, &out)
}

func (p *Peer) explainHandler() http.HandlerFunc {
	return answerJSON(func(r *http.Request, in explainRequest) (*admin.Placement, error) { return p.explain(r.Context(), in) })
}
