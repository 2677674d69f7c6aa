package stats

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/runtime/pods"
)

// counters is an engine whose counters the test sets.
type counters struct {
	Engine
	all []pods.PodStats
}

func (c *counters) Usage(context.Context) ([]pods.PodStats, error) { return c.all, nil }

func TestUseIsMeasuredOverWindows(t *testing.T) {
	proc := fakeProc(t)
	begun := time.Now().Add(-time.Minute)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
		{Name: "old", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(begun)}}},
	}}}
	engine := &counters{}
	n, _ := newNode(t, func(c *Config) {
		c.Proc, c.Pods = proc, func() []*corev1.Pod { return []*corev1.Pod{pod} }
		engine.Engine, c.Engine = c.Engine, engine
	})
	reads := func(at time.Time, nanos uint64) {
		engine.all = []pods.PodStats{{PodUID: "u", Containers: []pods.ContainerStats{
			{ID: "c1", Name: "old", Usage: pods.Usage{At: at, CPUNanos: nanos, WorkingSetBytes: 7 << 20}},
		}}, {PodUID: "stranger", Containers: []pods.ContainerStats{{ID: "c2", Name: "x", Usage: pods.Usage{At: at}}}}}
		if err := n.SampleUse(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// The first look measures a container from its start: 30 s of a minute are half a core.
	reads(begun.Add(time.Minute), 30e9)
	use := n.Use()
	if !use.At.IsZero() {
		t.Error("the node has figures before a window is over")
	}
	if len(use.Pods) != 1 || use.Pods[0].UID != "u" || use.Pods[0].Containers[0].CPU != 5e8 || use.Pods[0].Containers[0].Memory != 7<<20 {
		t.Fatalf("use from the start: %+v", use.Pods)
	}
	// The second measures from the first: 2 s of 10.
	if err := os.WriteFile(filepath.Join(proc, "stat"), []byte("cpu  200 0 50 9999 77 0 25 25 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	reads(begun.Add(70*time.Second), 32e9)
	use = n.Use()
	if use.At.IsZero() || use.Node.CPU == 0 || use.Node.Memory != 600000<<10 {
		t.Errorf("the node uses %+v", use)
	}
	if got := use.Pods[0]; got.Containers[0].CPU != 2e8 || got.Window != 10*time.Second {
		t.Errorf("use over the window: %+v", got)
	}
	// A counter that went back belongs to another run of the container, whose start is not known yet.
	pod.Status.ContainerStatuses[0].State = corev1.ContainerState{}
	reads(begun.Add(80*time.Second), 1e9)
	if use = n.Use(); len(use.Pods) != 0 {
		t.Errorf("figures out of nothing: %+v", use.Pods)
	}
}
