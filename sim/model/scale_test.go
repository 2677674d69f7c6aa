package model

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkScale simulates whole clusters with a hundred pods per node, up to 10,000 peers, 256 shards (the meta shard is one of them: it is
// as many as a revision can carry) and 1,000,000 pods. All pods are rolled out at once, one second into the run; once they are ready, one
// node in a hundred loses its power. Metrics:
//
//	rollout-v-s/s  virtual seconds per second until all pods were ready
//	steady-v-s/s   virtual seconds per second of a cluster in which nothing happens
//	faults-v-s/s   virtual seconds per second while nodes die and their pods are replaced
//	B/pod          live memory at the end, per pod: of the whole model, nodes and leaders' views included
//	peak-MiB       most memory that the process ever held (the smaller clusters run first)
func BenchmarkScale(b *testing.B) {
	for _, size := range []struct{ peers, shards int }{{100, 16}, {1000, 64}, {10_000, 256}} {
		b.Run(fmt.Sprint(size.peers), func(b *testing.B) {
			for range b.N {
				runScale(b, size.peers, size.shards)
			}
		})
	}
}

// scaled is a cluster of that size: a Deployment has 400 pods at most.
func scaled(peers, shards int) Config {
	cfg := Config{
		Seed: 1, Nodes: peers, Zones: 3, Allocatable: list("32", "64Gi", "160"), Shards: shards - 1, Length: time.Hour, ReadyWithin: time.Minute,
	}
	pods := 100 * peers
	workloads := max(pods/400, 20)
	for i := range workloads {
		cfg.Workloads = append(cfg.Workloads, Workload{
			Name: fmt.Sprintf("app%d", i), Replicas: pods / workloads, Requests: list("200m", "256Mi", ""),
		})
	}
	return cfg
}

func runScale(b *testing.B, peers, shards int) {
	cfg := scaled(peers, shards)
	before := liveBytes()
	m, err := newModel(cfg)
	if err != nil {
		b.Fatal(err)
	}
	rolled := func() bool { return m.checks.convergence.since >= 0 }
	b.ReportMetric(m.pace(10*time.Minute, rolled), "rollout-v-s/s")
	if !rolled() {
		b.Fatalf("after %s: %s", m.now, m.checks.convergence.why)
	}
	b.Logf("%d pods on %d nodes are ready after %s", 100*peers, peers, m.now)
	b.ReportMetric(m.pace(m.now+10*time.Second, never), "steady-v-s/s")
	for i := range peers / 100 {
		m.schedule(Fault{At: m.now + time.Duration(i%10)*time.Second, Kind: Crash, Target: fmt.Sprintf("n%d", 50+i*100)})
	}
	b.ReportMetric(m.pace(m.now+30*time.Second, never), "faults-v-s/s")
	m.finish()
	if len(m.outcome.Violations) > 0 {
		b.Fatal(m.outcome.Violations)
	}
	b.ReportMetric(float64(liveBytes()-before)/float64(100*peers), "B/pod")
	b.ReportMetric(float64(peakBytes(b))/(1<<20), "peak-MiB")
	b.ReportMetric(0, "ns/op")
	runtime.KeepAlive(m)
}

func never() bool { return false }

// pace runs until a moment, or until done says so, and returns virtual seconds per second.
func (m *Model) pace(until time.Duration, done func() bool) float64 {
	from, begun := m.now, time.Now()
	for len(m.steps) > 0 && m.steps[0].at <= until && !done() {
		m.next()
	}
	return (m.now - from).Seconds() / time.Since(begun).Seconds()
}

func liveBytes() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// peakBytes is the most memory that this process ever had resident.
func peakBytes(b *testing.B) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0 // not Linux
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	return 0
}
