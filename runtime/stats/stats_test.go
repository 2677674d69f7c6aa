package stats

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal/runtime/pods"
	"shoal/runtime/pods/podstest"
)

func newNode(t *testing.T, edit func(*Config)) (*Node, *podstest.Engine) {
	t.Helper()
	engine := podstest.NewEngine("img:1")
	cfg := Config{Engine: engine, NodeName: "node-a", DataDir: t.TempDir(), Pods: func() []*corev1.Pod { return nil }}
	if edit != nil {
		edit(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n, engine
}

func TestRealNode(t *testing.T) {
	n, _ := newNode(t, func(c *Config) { c.DataDir = filepath.Join(c.DataDir, "not/made/yet") })
	capacity, allocatable := n.Capacity(), n.Allocatable()
	if capacity.Cpu().Value() < 1 || capacity.Memory().Value() < 64<<20 || capacity.Pods().Value() != 110 || capacity.StorageEphemeral().Value() < 1<<20 {
		t.Errorf("capacity %v", capacity)
	}
	if kept := capacity.Memory().Value() - allocatable.Memory().Value(); kept != 100<<20 {
		t.Errorf("%d bytes are kept from pods", kept)
	}
	info := n.SystemInfo(t.Context())
	if info.KernelVersion == "" || info.OSImage == "" || info.BootID == "" || info.ContainerRuntimeVersion != "modelled://1" || info.OperatingSystem != "linux" || info.Architecture == "" || info.KubeletVersion != "v1.37.2" {
		t.Errorf("info %+v", info)
	}
	p, err := n.Pressure(t.Context())
	if err != nil || p.Memory || p.PIDs || p.Runtime != nil {
		t.Errorf("pressure %+v %v", p, err)
	}
	if bootTime("/proc").IsZero() {
		t.Error("no boot time")
	}
}

// fakeProc is a small machine that is short of memory and of processes.
func fakeProc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"meminfo": "MemTotal: 1000000 kB\nMemFree: 100000 kB\nMemAvailable: 50000 kB\nInactive(file): 300000 kB\nAnonPages: 7 kB\n",
		"stat":    "cpu  100 0 50 9999 77 0 25 25 0 0\nbtime 1700000000\n", "sys/kernel/pid_max": "2\n", "sys/kernel/random/boot_id": "b\n", "1/x": "", "2/x": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPressureAndConditions(t *testing.T) {
	proc := fakeProc(t)
	n, engine := newNode(t, func(c *Config) { c.Proc = proc })
	p, err := n.Pressure(t.Context())
	if err != nil || !p.Memory || !p.PIDs {
		t.Errorf("pressure %+v %v", p, err)
	}
	engine.SetDown(true)
	if p, err = n.Pressure(t.Context()); err != nil || !errors.Is(p.Runtime, pods.ErrUnavailable) {
		t.Errorf("pressure %+v %v", p, err)
	}
	t0, t1 := time.Unix(100, 0), time.Unix(200, 0)
	first := Conditions(p, nil, t0)
	second := Conditions(Pressure{Memory: true}, first, t1)
	want := map[corev1.NodeConditionType]struct {
		status corev1.ConditionStatus
		reason string
		since  time.Time
	}{
		corev1.NodeReady:          {corev1.ConditionTrue, "KubeletReady", t1},
		corev1.NodeMemoryPressure: {corev1.ConditionTrue, "KubeletHasInsufficientMemory", t0},
		corev1.NodeDiskPressure:   {corev1.ConditionFalse, "KubeletHasNoDiskPressure", t0},
		corev1.NodePIDPressure:    {corev1.ConditionFalse, "KubeletHasSufficientPID", t1},
	}
	if len(second) != len(want) {
		t.Errorf("%d conditions", len(second))
	}
	for _, c := range second {
		if w := want[c.Type]; c.Status != w.status || c.Reason != w.reason || !c.LastTransitionTime.Time.Equal(w.since) || !c.LastHeartbeatTime.Time.Equal(t1) {
			t.Errorf("%s: %+v, want %+v", c.Type, c, w)
		}
	}
}

// TestMemoryLimit: where the pods' cgroups may take less than the machine has, the node has no more, and is short of it earlier.
func TestMemoryLimit(t *testing.T) {
	n, engine := newNode(t, nil)
	whole := n.Capacity()
	machine := whole.Memory().Value()
	engine.Memory = pods.MemoryRoom{Limit: 1 << 62, Available: 1 << 61}
	if p, err := n.Pressure(t.Context()); err != nil || p.Memory {
		t.Errorf("a limit beyond the machine's memory: %+v %v", p, err)
	}
	engine.Memory = pods.MemoryRoom{Limit: 512 << 20, Available: 200 << 20}
	n, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	capacity, allocatable := n.Capacity(), n.Allocatable()
	if c, a := capacity.Memory().Value(), allocatable.Memory().Value(); c != 512<<20 || a != 412<<20 {
		t.Errorf("of %d bytes and a limit of 512Mi, capacity is %d and allocatable %d", machine, c, a)
	}
	if p, err := n.Pressure(t.Context()); err != nil || p.Memory {
		t.Errorf("with 200Mi left: %+v %v", p, err)
	}
	engine.Memory.Available = 99 << 20
	if p, err := n.Pressure(t.Context()); err != nil || !p.Memory {
		t.Errorf("with 99Mi left: %+v %v", p, err)
	}
	if err := n.SampleUse(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used := n.Use().Node.Memory; used != (512-99)<<20 {
		t.Errorf("the node uses %d bytes", used)
	}
}

func TestSummaryAndMetrics(t *testing.T) {
	proc := fakeProc(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"},
		Spec:       corev1.PodSpec{Volumes: []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}},
		Status:     corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(1700000005, 0)}}}}},
	}
	logs := t.TempDir()
	if err := os.MkdirAll(filepath.Join(logs, "main"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "main", "0.log"), make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	n, engine := newNode(t, func(c *Config) {
		c.Proc = proc
		c.Pods = func() []*corev1.Pod { return []*corev1.Pod{pod} }
		c.LogDir = func(*corev1.Pod) string { return logs }
		c.VolumeUsage = func(*corev1.Pod) map[string]pods.FSUsage {
			return map[string]pods.FSUsage{"tmp": {UsedBytes: 5000, InodesUsed: 2}}
		}
	})
	if _, err := engine.CreateSandbox(t.Context(), pods.SandboxSpec{PodUID: "u", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	c, err := engine.Create(t.Context(), pods.ContainerSpec{PodUID: "u", PodName: "web", Name: "main", Image: "img:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	s, err := n.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if *s.Node.CPU.UsageCoreNanoSeconds != 2_000_000_000 || *s.Node.Memory.WorkingSetBytes != 600000<<10 || *s.Node.Memory.AvailableBytes != 400000<<10 || s.Node.CPU.UsageNanoCores != nil {
		t.Errorf("node %+v %+v", s.Node.CPU, s.Node.Memory)
	}
	if len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 {
		t.Fatalf("pods %+v", s.Pods)
	}
	got := s.Pods[0]
	if *got.Containers[0].Memory.WorkingSetBytes != 1<<20 || *got.Containers[0].Logs.UsedBytes < 10000 || got.VolumeStats[0].Name != "tmp" || *got.EphemeralStorage.UsedBytes < 10000+4096+5000 {
		t.Errorf("pod %+v", got)
	}
	if rate := n.rate("x", time.Unix(0, 0), 0); rate != nil {
		t.Error("a rate of one sample")
	}
	if rate := n.rate("x", time.Unix(2, 0), 1_000_000_000); rate == nil || *rate != 500_000_000 {
		t.Errorf("rate %v", rate)
	}
	if rate := n.rate("x", time.Unix(2, 1000), 1_000_000_500); rate == nil || *rate != 500_000_000 {
		t.Errorf("rate soon after %v", rate)
	}
	var text bytes.Buffer
	if err := n.WriteResourceMetrics(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total 2 ", `pod_memory_working_set_bytes{namespace="default",pod="web"} 1.048576e+06 `,
		`container_start_time_seconds{container="main",namespace="default",pod="web"} 1.700000005e+09` + "\n", "resource_scrape_error 0\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("metrics lack %q:\n%s", want, text.String())
		}
	}
}

func TestLargestImages(t *testing.T) {
	got := largest([]pods.Image{{Names: []string{"a"}, Size: 1}, {Names: []string{"b"}, Digests: []string{"b@x"}, Size: 3}, {Names: []string{"c"}, Size: 2}}, 2)
	if len(got) != 2 || got[0].SizeBytes != 3 || got[0].Names[0] != "b@x" || got[1].Names[0] != "c" {
		t.Errorf("%+v", got)
	}
}
