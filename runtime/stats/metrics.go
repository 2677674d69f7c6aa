package stats

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/runtime/pods"
)

// WriteResourceMetrics writes the metrics that autoscaling and `kubectl top` live on, in Prometheus' text format, as the kubelet's
// /metrics/resource. https://kubernetes.io/docs/reference/instrumentation/node-metrics/
func (n *Node) WriteResourceMetrics(ctx context.Context, w io.Writer) error {
	nanos, err := cpuNanos(n.cfg.Proc)
	if err != nil {
		return err
	}
	m, err := n.memory()
	if err != nil {
		return err
	}
	usage, err := n.cfg.Engine.Stats(ctx)
	if err != nil {
		return err
	}
	byUID := map[string]*corev1.Pod{}
	for _, p := range n.cfg.Pods() {
		byUID[string(p.UID)] = p
	}
	t := &metricText{}
	now := time.Now()
	t.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
	t.sample("node_cpu_usage_seconds_total", "", float64(nanos)/1e9, now)
	t.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
	t.sample("node_memory_working_set_bytes", "", float64(m.workingSet()), now)
	for _, f := range []struct {
		name, kind, help string
		value            func(pods.Usage) float64
	}{
		{"cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in core-seconds", func(u pods.Usage) float64 { return float64(u.CPUNanos) / 1e9 }},
		{"memory_working_set_bytes", "gauge", "Current working set in bytes", func(u pods.Usage) float64 { return float64(u.WorkingSetBytes) }},
	} {
		t.family("container_"+f.name, f.kind, f.help)
		t.containers(usage, byUID, "container_"+f.name, f.value)
		t.family("pod_"+f.name, f.kind, f.help)
		t.pods(usage, byUID, "pod_"+f.name, f.value)
	}
	t.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds")
	for _, p := range usage {
		for _, c := range p.Containers {
			if pod := byUID[p.PodUID]; pod != nil {
				if start := startOf(pod, c.Name); !start.IsZero() {
					t.sample("container_start_time_seconds", containerLabels(pod, c.Name), float64(start.Unix()), time.Time{})
				}
			}
		}
	}
	t.family("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	t.sample("resource_scrape_error", "", 0, time.Time{})
	_, err = io.WriteString(w, t.String())
	return err
}

// metricText builds Prometheus' text format.
type metricText struct{ strings.Builder }

func (t *metricText) family(name, kind, help string) {
	fmt.Fprintf(t, "# HELP %s [STABLE] %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (t *metricText) sample(name, labels string, value float64, at time.Time) {
	fmt.Fprintf(t, "%s%s %g", name, labels, value)
	if !at.IsZero() {
		fmt.Fprintf(t, " %d", at.UnixMilli())
	}
	t.WriteByte('\n')
}

func (t *metricText) containers(usage []pods.PodStats, byUID map[string]*corev1.Pod, name string, value func(pods.Usage) float64) {
	for _, p := range usage {
		for _, c := range p.Containers {
			if pod := byUID[p.PodUID]; pod != nil {
				t.sample(name, containerLabels(pod, c.Name), value(c.Usage), c.Usage.At)
			}
		}
	}
}

func (t *metricText) pods(usage []pods.PodStats, byUID map[string]*corev1.Pod, name string, value func(pods.Usage) float64) {
	for _, p := range usage {
		if pod := byUID[p.PodUID]; pod != nil {
			t.sample(name, fmt.Sprintf("{namespace=%q,pod=%q}", pod.Namespace, pod.Name), value(p.Usage), p.Usage.At)
		}
	}
}

func containerLabels(pod *corev1.Pod, container string) string {
	return fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", container, pod.Namespace, pod.Name)
}
