package bench

import (
	"context"
	"fmt"

	"shoal/internal/cputime"
	"shoal/placement/schedule/perf"
)

// measureScheduling decides scheduler_perf's cases, and then pods in clusters of different sizes. Rates are per second of CPU time, the
// collector's included: what one core decides in a second that is its own.
func measureScheduling(ctx context.Context, s *session) (rows []Row, err error) {
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	for _, c := range perf.Cases() {
		var rates []float64
		err := s.step(fmt.Sprintf("%s: %d pods on %d nodes", c.Name, c.Pods, c.Nodes), func() (err error) {
			rates, err = decisionRates(ctx, c, s.times(3, 1))
			return err
		})
		if err != nil {
			return rows, err
		}
		row := Row{
			What: fmt.Sprintf("decisions on one core, %s, %d nodes", c.Name, c.Nodes), Unit: "1/s", Measured: sampleOf(rates),
			Against: "kube-scheduler's floor", Reference: sampleOf([]float64{c.Floor}), Aim: Aim{LeastRatio: 20},
		}
		if c.Name == perf.DistinctPods { // scheduler_perf has no such case: the floor is that of Basic
			row.Aim = Aim{}
		}
		rows = append(rows, row)
	}
	grown, err := s.measureGrowth(ctx)
	return append(rows, grown...), err
}

// measureGrowth is the cost of a pod in clusters of different sizes, each beside the one before.
func (s *session) measureGrowth(ctx context.Context) (rows []Row, err error) {
	var before perf.Case
	var reference [2]Sample
	for _, c := range []perf.Growth{
		{Nodes: 1000, PodsPerNode: 1}, {Nodes: 5000, PodsPerNode: 1}, {Nodes: 20000, PodsPerNode: 1},
		{Nodes: 20000, PodsPerNode: 10}, {Nodes: 20000, PodsPerNode: 10, Constraints: 2}, {Nodes: 20000, PodsPerNode: 10, Constraints: 4},
	} {
		if s.cfg.Quick && c.Nodes > 5000 {
			break
		}
		for i, kind := range []string{"one of many equal pods", "a pod unlike all others"} {
			c.Distinct, c.Pods = i == 1, []int{2000, 100}[i]
			next := c.Case()
			var costs []float64
			err := s.step(next.Name+": "+kind, func() error {
				rates, err := decisionRates(ctx, next, s.times(3, 1))
				for _, rate := range rates {
					costs = append(costs, 1e6/rate)
				}
				return err
			})
			if err != nil {
				return rows, err
			}
			row := Row{What: fmt.Sprintf("CPU time of %s, %s", kind, next.Name), Unit: "µs", Measured: sampleOf(costs)}
			if before.Name != "" {
				row.Against, row.Reference = before.Name, reference[i]
			}
			reference[i] = row.Measured
			rows = append(rows, row)
		}
		before = c.Case()
	}
	return rows, nil
}

// decisionRates decides all pods of a case several times over.
func decisionRates(ctx context.Context, c perf.Case, times int) (rates []float64, err error) {
	for range times {
		run := c.Prepare()
		begun := cputime.Used()
		for run.Waiting() > 0 {
			if err := errorOf(ctx, run.Step()); err != nil {
				return nil, err
			}
		}
		rates = append(rates, float64(c.Pods)/(cputime.Used()-begun).Seconds())
	}
	return rates, nil
}

func errorOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
