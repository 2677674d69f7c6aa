package perf

import (
	"testing"
	"time"

	"shoal/internal/cputime"
)

// BenchmarkSchedulerPerf decides all pods of each case and reports pods per second of CPU time (all threads', so the collector's too),
// scheduler_perf's floor for kube-scheduler, and how many times the floor that is. One second of CPU time is what one core has in a
// second: on a busy machine the wall's clock would measure its other tenants.
func BenchmarkSchedulerPerf(b *testing.B) {
	for _, c := range Cases() {
		b.Run(c.Name, func(b *testing.B) { measure(b, &c) })
	}
}

// BenchmarkGrowth shows how the CPU time per pod grows with nodes, with pods on them and with constraints: for pods of one kind, decided in
// batches, and for pods that have nothing in common.
//
//	go test ./placement/schedule/perf -run '^$' -bench Growth -benchtime 1x
func BenchmarkGrowth(b *testing.B) {
	for _, nodes := range []int{1000, 5000, 20000} {
		for _, podsPerNode := range []int{1, 10} {
			for _, constraints := range []int{0, 1, 2, 4} {
				g := Growth{Nodes: nodes, PodsPerNode: podsPerNode, Constraints: constraints, Pods: 2000}
				equal := g.Case()
				g.Pods, g.Distinct = 100, true
				distinct := g.Case()
				b.Run(equal.Name, func(b *testing.B) {
					b.ReportMetric(1e6/rate(b, &equal), "cpu-µs/equal")
					b.ReportMetric(1e6/rate(b, &distinct), "cpu-µs/distinct")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}

func measure(b *testing.B, c *Case) {
	rate := rate(b, c)
	b.ReportMetric(rate, "pods/cpu-s")
	b.ReportMetric(c.Floor, "floor")
	b.ReportMetric(rate/c.Floor, "times")
	b.ReportMetric(0, "ns/op")
}

// rate decides all pods of a case b.N times and returns pods per second of CPU time.
func rate(b *testing.B, c *Case) float64 {
	b.Helper()
	var used time.Duration
	for range b.N {
		b.StopTimer()
		r := c.Prepare()
		b.StartTimer()
		begun := cputime.Used()
		for r.Waiting() > 0 {
			if err := r.Step(); err != nil {
				b.Fatal(err)
			}
		}
		used += cputime.Used() - begun
	}
	return float64(b.N*c.Pods) / used.Seconds()
}

// TestCases: every pod of every case gets a node.
func TestCases(t *testing.T) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			small := c
			small.Nodes, small.Placed, small.Pods = c.Nodes/100, c.Placed/100, c.Pods/100
			r := small.Prepare()
			for r.Waiting() > 0 {
				if err := r.Step(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
