package peer

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal/consensus/bugs"
	"shoal/runtime/pods"
)

// bindings are the pods bound to this node, as the store has them, and bring them to the agent and the ledger.
//
// What this peer has read may be old: older than what its predecessor runs here, by all that raft has not told its copies to be committed,
// or from before others took this node for lost. By such a picture pods may be started, but for those that must not run twice, which wait
// until their shard's is sure (trust); and none that runs may be removed before the picture is complete.
type bindings struct {
	self   string
	agent  *pods.Agent
	ledger *pods.Ledger

	lock  sync.Mutex
	bound map[types.UID]binding
	sure  map[uint64]bool // shards whose picture is sure; nil is all
}

// binding is a pod of this node and the shard that it is stored in.
type binding struct {
	pod   *corev1.Pod
	shard uint64
}

func newBindings(self string, agent *pods.Agent, ledger *pods.Ledger) *bindings {
	b := &bindings{
		self: self, agent: agent, ledger: ledger,
		bound: map[types.UID]binding{}, sure: map[uint64]bool{},
	}
	agent.Hold(b.unsure)
	return b
}

// take brings one pod of a shard that was changed, or is gone.
func (b *bindings) take(shard uint64, pod *corev1.Pod, gone bool) {
	mine := pod.Spec.NodeName == b.self && !gone
	b.lock.Lock()
	_, had := b.bound[pod.UID]
	if mine {
		b.bound[pod.UID] = binding{pod, shard}
	} else {
		delete(b.bound, pod.UID)
	}
	b.lock.Unlock()
	switch {
	case mine:
		b.ledger.Upsert(pod)
		b.agent.Upsert(pod)
	case had:
		if !bugs.On(bugs.KeepClaims) {
			b.ledger.Remove(pod.UID)
		}
		b.agent.Remove(pod.UID)
	}
}

// unsure says of a pod that it must not be started by what is known: it must not run twice, and might run elsewhere.
func (b *bindings) unsure(pod *corev1.Pod) bool {
	if !mustNotRunTwice(pod) {
		return false
	}
	b.lock.Lock()
	defer b.lock.Unlock()
	bound, known := b.bound[pod.UID]
	return b.sure != nil && (!known || !b.sure[bound.shard])
}

// trusts says whether a shard's picture is sure.
func (b *bindings) trusts(shard uint64) bool {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.sure == nil || b.sure[shard]
}

// trust makes a shard's picture sure: everything is known that was decided about its pods while this node could not be heard.
func (b *bindings) trust(shard uint64) {
	b.lock.Lock()
	if b.sure != nil {
		b.sure[shard] = true
	}
	b.lock.Unlock()
	b.agent.Lift(b.unsure)
}

// trustAll makes the picture sure, shards included that will be there later.
func (b *bindings) trustAll() {
	b.lock.Lock()
	b.sure = nil
	b.lock.Unlock()
	b.agent.Lift(nil)
}

// doubt takes all trust back. What runs goes on until it is fenced.
func (b *bindings) doubt() {
	b.lock.Lock()
	defer b.lock.Unlock()
	b.sure = map[uint64]bool{}
}

// complete says that these are all: what runs here and is not among them is nobody's any more.
func (b *bindings) complete() {
	all := b.all()
	b.ledger.SetRunning(all)
	b.agent.Set(all)
}

// guess gives room away, to shards that have a quorum, beside all that is known and all that runs.
func (b *bindings) guess() {
	b.ledger.SetRunning(append(b.agent.Pods(), b.all()...))
}

// all lists the pods, in no particular order.
func (b *bindings) all() []*corev1.Pod {
	b.lock.Lock()
	defer b.lock.Unlock()
	all := make([]*corev1.Pod, 0, len(b.bound))
	for _, bound := range b.bound {
		all = append(all, bound.pod)
	}
	return all
}

// pod is the pod of that UID; nil if none is bound here.
func (b *bindings) pod(uid types.UID) *corev1.Pod {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.bound[uid].pod
}
