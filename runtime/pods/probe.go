package pods

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProbeKind is what a probe decides.
type ProbeKind string

// The kinds of probes.
const (
	StartupProbe   ProbeKind = "Startup"
	LivenessProbe  ProbeKind = "Liveness"
	ReadinessProbe ProbeKind = "Readiness"
)

// ProbeResult is a probe's verdict after thresholds.
type ProbeResult int

// Verdicts. Unknown means that no threshold was reached yet: alive, not started, not ready.
const (
	ProbeUnknown ProbeResult = iota
	ProbeSuccess
	ProbeFailure
)

// ProbeResults are the verdicts on one container.
type ProbeResults struct{ Startup, Liveness, Readiness ProbeResult }

// Set records a verdict.
func (r *ProbeResults) Set(kind ProbeKind, result ProbeResult) {
	switch kind {
	case StartupProbe:
		r.Startup = result
	case LivenessProbe:
		r.Liveness = result
	case ReadinessProbe:
		r.Readiness = result
	}
}

// probeCount applies thresholds to a run of probe outcomes.
type probeCount struct {
	last   bool
	run    int // equal outcomes in a row
	result ProbeResult
}

// observe counts one outcome and reports whether the verdict changed. Thresholds below 1 count as the API's defaults, 1 and 3.
func (c *probeCount) observe(ok bool, p *corev1.Probe) (changed bool) {
	if c.run == 0 || ok != c.last {
		c.run = 0
	}
	c.last = ok
	c.run++
	before := c.result
	switch {
	case ok && c.run >= orDefault(p.SuccessThreshold, 1):
		c.result = ProbeSuccess
	case !ok && c.run >= orDefault(p.FailureThreshold, 3):
		c.result = ProbeFailure
	}
	return c.result != before
}

func orDefault(v, d int32) int {
	if v <= 0 {
		return int(d)
	}
	return int(v)
}

func probeOf(c *corev1.Container, kind ProbeKind) *corev1.Probe {
	switch kind {
	case StartupProbe:
		return c.StartupProbe
	case LivenessProbe:
		return c.LivenessProbe
	}
	return c.ReadinessProbe
}

// firstProbeAt is when a container that started then is first probed.
func firstProbeAt(p *corev1.Probe, started time.Time) time.Time {
	return started.Add(time.Duration(p.InitialDelaySeconds) * time.Second)
}

func probePeriod(p *corev1.Probe) time.Duration {
	return time.Duration(orDefault(p.PeriodSeconds, 10)) * time.Second
}

func probeTimeout(p *corev1.Probe) time.Duration {
	return time.Duration(orDefault(p.TimeoutSeconds, 1)) * time.Second
}
