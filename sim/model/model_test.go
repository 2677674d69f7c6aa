package model

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func list(cpu, memory, pods string) corev1.ResourceList {
	l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	if pods != "" {
		l[corev1.ResourcePods] = resource.MustParse(pods)
	}
	return l
}

// swarm is a cluster of nine under random faults.
func swarm(seed uint64) Config {
	return Config{
		Seed: seed, Nodes: 9, Zones: 3, Allocatable: list("4", "8Gi", "110"), Shards: 3,
		Workloads: []Workload{
			{Name: "web", Replicas: 24, Requests: list("250m", "128Mi", "")},
			{Name: "shop", Replicas: 12, Requests: list("500m", "256Mi", "")},
			{Name: "db", Stateful: true, Replicas: 3, Requests: list("500m", "1Gi", "")},
		},
		Random: Swarm{Faults: 10, From: 10 * time.Second, Until: 70 * time.Second},
		Length: 180 * time.Second, ReadyWithin: 40 * time.Second,
	}
}

// TestSameSeedSameTrace runs the same seed several times and compares traces, line by line and by hash, also with a stored hash. The hash changes
// whenever anything that decides changes; then look at the difference of the traces, and store the new one:
// go test ./sim/model -run TestSameSeedSameTrace prints it.
func TestSameSeedSameTrace(t *testing.T) {
	t.Parallel()
	var traces [3]strings.Builder
	var outcomes [3]Outcome
	for i := range traces {
		cfg := swarm(7)
		cfg.Trace = &traces[i]
		var err error
		if outcomes[i], err = Run(cfg); err != nil {
			t.Fatal(err)
		}
	}
	for k := range traces[1:] {
		if outcomes[0].Hash == outcomes[k+1].Hash {
			continue
		}
		a, b := strings.Split(traces[0].String(), "\n"), strings.Split(traces[k+1].String(), "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Fatalf("line %d of the traces differs:\n%s\n%s", i+1, a[i], b[i])
			}
		}
		t.Fatal("the traces' hashes differ, and not in what people can read")
	}
	if other, err := Run(swarm(8)); err != nil || other.Hash == outcomes[0].Hash {
		t.Errorf("another seed gives the same trace, or none: %v", err)
	}
	stored, err := os.ReadFile("testdata/seed7." + runtime.GOARCH + ".hash")
	if err != nil {
		t.Fatal(err)
	}
	if got := outcomes[0].Hash; got != strings.TrimSpace(string(stored)) {
		t.Errorf("the trace of seed 7 has the hash %s, stored is %s", got, stored)
	}
}

// TestRandomFaults runs seeds; SHOAL_SIM_SEEDS=FROM-TO chooses which. A failure names its seed and prints the end of the trace.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	from, to := seeds(t, 1, 8)
	var virtual time.Duration
	for seed := from; seed <= to; seed++ {
		var trace strings.Builder
		cfg := swarm(seed)
		cfg.Trace, cfg.Operators = &trace, true
		outcome, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		virtual += cfg.Length
		for _, violation := range outcome.Violations {
			t.Errorf("seed %d: %s", seed, violation)
		}
		if len(outcome.Violations) > 0 {
			path := fmt.Sprintf("%s/sim-seed-%d.txt", os.TempDir(), seed)
			t.Logf("replay: SHOAL_SIM_SEEDS=%d-%d go test ./sim/model -run TestRandomFaults; trace: %s (%v)",
				seed, seed, path, os.WriteFile(path, []byte(trace.String()), 0o600))
		}
	}
	t.Logf("simulated: %d fixed seeds (%d to %d), %s of virtual time", to-from+1, from, to, virtual)
}

func seeds(t *testing.T, from, to uint64) (uint64, uint64) {
	t.Helper()
	text := os.Getenv("SHOAL_SIM_SEEDS")
	if text == "" {
		return from, to
	}
	a, b, ok := strings.Cut(text, "-")
	first, err1 := strconv.ParseUint(a, 10, 64)
	last, err2 := strconv.ParseUint(b, 10, 64)
	if !ok || err1 != nil || err2 != nil || last < first {
		t.Fatalf("SHOAL_SIM_SEEDS is %q; expected: FROM-TO", text)
	}
	return first, last
}

// TestRestartsDoNotOvercommit found that a restarted peer granted room before it knew what was bound to it (seeds 1, 5 and 6).
func TestRestartsDoNotOvercommit(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 5, 6, 7} {
		cfg := swarm(seed)
		cfg.Nodes, cfg.Shards, cfg.Allocatable = 4, 4, list("2", "8Gi", "110")
		cfg.ReadyWithin, cfg.Length, cfg.Workloads, cfg.Random = 0, 55*time.Second, nil, Swarm{}
		for i := range 6 { // more than fits, so that there is always a pod that waits
			cfg.Workloads = append(cfg.Workloads, Workload{Name: fmt.Sprintf("app%d", i), Replicas: 6, Requests: list("300m", "64Mi", "")})
		}
		for i := range 8 {
			at, name := time.Duration(5+6*i)*time.Second, fmt.Sprintf("n%d", 1+i%4)
			cfg.Faults = append(cfg.Faults, Fault{At: at, Kind: Crash, Target: name},
				Fault{At: at + time.Duration(500+200*i)*time.Millisecond, Kind: Restart, Target: name})
		}
		outcome, err := Run(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range outcome.Violations {
			t.Errorf("seed %d: %s", seed, violation)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for say, change := range map[string]func(*Config){
		"at least one node":      func(c *Config) { c.Nodes = 0 },
		`there is no node "n99"`: func(c *Config) { c.Faults = []Fault{{Kind: Crash, Target: "n99"}} },
		"number of nodes":        func(c *Config) { c.Faults = []Fault{{Kind: Join}} },
		"leave no time":          func(c *Config) { c.Random.Until = c.Random.From },
	} {
		cfg := swarm(1)
		change(&cfg)
		if _, err := Run(cfg); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v; want %q", err, say)
		}
	}
}

// BenchmarkCluster tells how much faster than time a cluster is simulated: ten pods per node are rolled out, one node in a hundred dies.
func BenchmarkCluster(b *testing.B) {
	for _, nodes := range []int{100, 1000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			for range b.N {
				cfg := Config{Seed: 1, Nodes: nodes, Zones: 3, Allocatable: list("4", "8Gi", "110"), Shards: 8, Length: time.Minute, ReadyWithin: 30 * time.Second}
				for i := range 20 {
					cfg.Workloads = append(cfg.Workloads, Workload{Name: fmt.Sprintf("app%d", i), Replicas: nodes / 2, Requests: list("250m", "128Mi", "")})
				}
				for i := range nodes / 100 {
					cfg.Faults = append(cfg.Faults, Fault{At: time.Duration(20+i) * time.Second, Kind: Crash, Target: fmt.Sprintf("n%d", 50+i*100)})
				}
				begun := time.Now()
				outcome, err := Run(cfg)
				if err != nil || len(outcome.Violations) > 0 {
					b.Fatal(err, outcome.Violations)
				}
				took := time.Since(begun)
				b.ReportMetric(cfg.Length.Seconds()/took.Seconds(), "virtual-s/s")
				b.ReportMetric(float64(outcome.Steps)/took.Seconds(), "steps/s")
				b.ReportMetric(float64(outcome.Evictions), "evictions")
			}
		})
	}
}
