package perf

import "testing"

// BenchmarkSchedulerPerf decides all pods of each case on one core and reports pods per second,
// scheduler_perf's floor for kube-scheduler, and how many times the floor that is.
func BenchmarkSchedulerPerf(b *testing.B) {
	for _, c := range Cases() {
		b.Run(c.Name, func(b *testing.B) { measure(b, &c) })
	}
}

func measure(b *testing.B, c *Case) {
	for range b.N {
		b.StopTimer()
		r := c.Prepare()
		b.StartTimer()
		for r.Waiting() > 0 {
			if err := r.Step(); err != nil {
				b.Fatal(err)
			}
		}
	}
	rate := float64(b.N*c.Pods) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "pods/s")
	b.ReportMetric(c.Floor, "floor")
	b.ReportMetric(rate/c.Floor, "times")
	b.ReportMetric(0, "ns/op")
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
