package pods

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// probeKey is one probe of one running container.
type probeKey struct {
	id   string
	kind ProbeKind
}

// reconcileProbes starts probes that should run and ends those that should not; w.mu is held.
func (w *worker) reconcileProbes(ctx context.Context, want []ProbeTarget) {
	keep := map[probeKey]bool{}
	for _, t := range want {
		key := probeKey{t.ContainerID, t.Kind}
		keep[key] = true
		c := findContainer(w.pod, t.Container)
		if w.probes[key] != nil || c == nil || probeOf(c, t.Kind) == nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		w.probes[key] = cancel
		before := w.state.Probes[t.ContainerID]
		w.tasks.Go(func() { w.runProbe(ctx, t, c, probeOf(c, t.Kind), before.of(t.Kind)) })
	}
	for key, cancel := range w.probes {
		if !keep[key] {
			cancel()
			delete(w.probes, key)
		}
	}
}

// of is the verdict of one kind.
func (r ProbeResults) of(kind ProbeKind) ProbeResult {
	switch kind {
	case StartupProbe:
		return r.Startup
	case LivenessProbe:
		return r.Liveness
	}
	return r.Readiness
}

// Between scheduled probes a container that has just started is looked at more often, so that it is ready when it is and not up to a
// period later. Such a look counts only when it succeeds.
const (
	lookFirst = 50 * time.Millisecond
	lookFor   = 10 * time.Second
)

// runProbe probes at the period until ctx ends and records each change of the verdict.
func (w *worker) runProbe(ctx context.Context, t ProbeTarget, c *corev1.Container, probe *corev1.Probe, before ProbeResult) {
	count := probeCount{result: before}
	first := firstProbeAt(probe, t.StartedAt)
	scheduled, look, at := first, lookFirst, first
	eager := t.Kind != LivenessProbe && before == ProbeUnknown && orDefault(probe.SuccessThreshold, 1) == 1
	timer := time.NewTimer(max(0, time.Until(first)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		w.mu.Lock()
		pod := w.withStatus()
		w.mu.Unlock()
		err := w.agent.prober.probe(ctx, pod, t.ContainerID, c, probe)
		if ctx.Err() != nil {
			return
		}
		counts := err == nil || !at.Before(scheduled)
		if counts {
			w.record(pod, t, c, probe, &count, err)
		}
		now := time.Now()
		for !scheduled.After(now) {
			scheduled = now.Add(probePeriod(probe))
		}
		at = scheduled
		if eager && err != nil && now.Sub(first) < lookFor {
			at = earliest(scheduled, now.Add(look))
			look *= 2
		}
		timer.Reset(max(0, time.Until(at)))
	}
}

// record counts an outcome, reports a failure, and hands a changed verdict to the plan.
func (w *worker) record(pod *corev1.Pod, t ProbeTarget, c *corev1.Container, probe *corev1.Probe, count *probeCount, err error) {
	if err != nil {
		w.warn(pod, fieldPath(pod, c.Name), "Unhealthy", fmt.Sprintf("%s probe failed: %v", t.Kind, err))
	}
	if count.observe(err == nil, probe) {
		w.update(func(s *PodState) {
			results := s.Probes[t.ContainerID]
			results.Set(t.Kind, count.result)
			s.Probes[t.ContainerID] = results
		})
	}
}
