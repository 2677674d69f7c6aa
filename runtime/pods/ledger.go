package pods

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// notReady is why a ledger that does not know enough yet refuses.
const notReady = "node is not ready"

// Ledger holds what a node runs and has granted, and answers claims (D6). It is safe for concurrent use.
type Ledger struct {
	// OnGrant, when set, is called with each newly granted claim, outside the lock, so that the node may prepare.
	OnGrant func(Claim)

	mu       sync.Mutex
	capacity Capacity
	load     Load
	told     bool // SetRunning was called: load is complete
}

// NewLedger returns a ledger that grants nothing until SetCapacity and SetRunning: a peer that restarts may be ready to write its Node
// before it has read which pods are bound here, and would grant their room a second time.
func NewLedger() *Ledger {
	return &Ledger{capacity: Capacity{Closed: notReady}, load: Load{Running: map[types.UID]Claim{}, Granted: map[types.UID]GrantedAt{}}}
}

// SetCapacity says what the node can give from now on. What runs stays, also when it is more.
func (l *Ledger) SetCapacity(c Capacity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.capacity = c
}

// SetRunning says which pods are bound to this node; those in a terminal phase do not count. Grants of bound pods are used up.
func (l *Ledger) SetRunning(pods []*corev1.Pod) {
	running := make(map[types.UID]Claim, len(pods))
	for _, pod := range pods {
		if !terminal(pod.Status.Phase) {
			running[pod.UID] = heldBy(pod)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.load.Running, l.told = running, true
	for uid := range running {
		delete(l.load.Granted, uid)
	}
}

// Upsert records one bound pod, or that it is over; Remove one that is gone.
func (l *Ledger) Upsert(pod *corev1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.load.Granted, pod.UID)
	if terminal(pod.Status.Phase) {
		delete(l.load.Running, pod.UID)
		return
	}
	l.load.Running[pod.UID] = heldBy(pod)
}

// Remove forgets a pod, and its grant.
func (l *Ledger) Remove(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.load.Running, uid)
	delete(l.load.Granted, uid)
}

// Claim answers claims and holds room for those granted.
func (l *Ledger) Claim(claims []Claim, now time.Time) []Answer {
	l.mu.Lock()
	capacity := l.capacity
	if !l.told {
		capacity.Closed = notReady
	}
	answers, granted := Admit(capacity, l.load, claims, now)
	var fresh []Claim
	for i, c := range claims {
		_, held := l.load.Granted[c.PodUID]
		_, runs := l.load.Running[c.PodUID]
		if answers[i].Granted && !held && !runs {
			fresh = append(fresh, c)
		}
	}
	l.load.Granted = granted
	l.mu.Unlock()
	if l.OnGrant != nil {
		for _, c := range fresh {
			l.OnGrant(c)
		}
	}
	return answers
}

// Held lists what counts against the capacity now: the claims of running pods and the grants that still stand. The Pod of a running pod's
// claim is the pod itself, which must not be changed; Outline it before it goes to others.
func (l *Ledger) Held(now time.Time) []Claim {
	held := []Claim{}
	l.Each(now, func(claim Claim) { held = append(held, claim) })
	return held
}

// Each calls f with every claim that Held lists, in no particular order. f must not use the ledger.
func (l *Ledger) Each(now time.Time, f func(Claim)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, claim := range l.load.Running {
		f(claim)
	}
	for uid, grant := range l.load.Granted {
		if _, runs := l.load.Running[uid]; !runs && now.Sub(grant.At) < GrantTTL {
			f(grant.Claim)
		}
	}
}
