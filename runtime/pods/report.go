package pods

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// reportDelay holds back a status that will probably be overtaken at once: a pod that becomes Ready quickly is written once.
	reportDelay    = 150 * time.Millisecond
	reportRetry    = 250 * time.Millisecond
	reportRetryMax = 10 * time.Second
)

// reporter sends the newest status of one pod: only when it changed, one at a time, again until it arrives. The worker's mu guards it.
type reporter struct {
	sent   *corev1.PodStatus // as it arrived
	want   *corev1.PodStatus
	urgent chan struct{} // closed when want should not be held back
	active bool
}

// offer asks for a status to be reported. w.mu is held.
func (r *reporter) offer(ctx context.Context, w *worker, status corev1.PodStatus) {
	r.want = &status
	if r.active {
		if r.isUrgent(w, &status) {
			r.hurry()
		}
		return
	}
	stored := r.sent
	if stored == nil { // nothing was sent in this life: what the API has may be right already
		stored = &w.pod.Status
	}
	if equality.Semantic.DeepEqual(*stored, status) {
		return
	}
	r.active, r.urgent = true, make(chan struct{})
	if r.isUrgent(w, &status) {
		r.hurry()
	}
	hold := r.urgent
	w.tasks.Go(func() { w.sendStatus(ctx, hold) })
}

// heed looks at a status as it is stored. While a node is not heard, the leader marks its pods not ready; when it is back, that must not
// stand just because this reporter's last word has not changed. An old object at worst costs a write that changes nothing. w.mu is held.
func (r *reporter) heed(stored *corev1.PodStatus) {
	if r.sent != nil && isReady(r.sent) != isReady(stored) {
		r.sent = nil
	}
}

func (r *reporter) hurry() {
	select {
	case <-r.urgent:
	default:
		close(r.urgent)
	}
}

// isUrgent reports whether others wait for this status: the pod is over, or its readiness changed.
func (r *reporter) isUrgent(w *worker, s *corev1.PodStatus) bool {
	before := r.sent
	if before == nil {
		before = &w.pod.Status
	}
	return terminal(s.Phase) || isReady(s) != isReady(before)
}

func isReady(s *corev1.PodStatus) bool {
	c := findCondition(s.Conditions, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// sendStatus sends until what was wanted last has arrived.
func (w *worker) sendStatus(ctx context.Context, hold <-chan struct{}) {
	defer func() {
		w.mu.Lock()
		w.report.active = false
		w.mu.Unlock()
		w.poke() // something may have been offered since
	}()
	select {
	case <-ctx.Done():
		return
	case <-hold:
	case <-time.After(reportDelay):
	}
	for wait := reportRetry; ; {
		w.mu.Lock()
		want, sent, pod := w.report.want, w.report.sent, w.pod
		w.mu.Unlock()
		if sent != nil && equality.Semantic.DeepEqual(*sent, *want) {
			return
		}
		err := w.agent.cfg.Reports.Status(ctx, pod, *want.DeepCopy())
		switch {
		case err == nil:
			w.mu.Lock()
			w.report.sent = want
			if w.pod != pod {
				w.report.heed(&w.pod.Status) // it may have been written after what was sent, and heard before the answer
			}
			w.mu.Unlock()
			wait = reportRetry
			continue
		case apierrors.IsNotFound(err):
			w.mu.Lock()
			w.report.sent = want
			w.state.Removed = true
			w.mu.Unlock()
			return
		case ctx.Err() != nil:
			return
		}
		w.agent.log.Debug("a pod's status was not written; trying again", "pod", podText(pod), "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, reportRetryMax)
	}
}
