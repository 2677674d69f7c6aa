// Package load keeps a number of requests in flight and tells how many came through and how long they took. The bench and its etcd
// reference, which is a program of its own, share it, so that both are loaded in the same way.
package load

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Result of a load.
type Result struct {
	Count     int     `json:"count"`
	PerSecond float64 `json:"perSecond"`
	P50       float64 `json:"p50"` // ms
	P99       float64 `json:"p99"` // ms
}

// Run has that many workers do something again and again for a span; do gets the worker's number. It stops at the first error.
func Run(ctx context.Context, workers int, span time.Duration, do func(ctx context.Context, worker int) error) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	times := make([][]time.Duration, workers)
	begun := time.Now()
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			// Once at least, also on a machine so busy that the span is over before the worker begins.
			for first := true; (first || time.Since(begun) < span) && ctx.Err() == nil; first = false {
				started := time.Now()
				if err := do(ctx, worker); err != nil {
					cancel(err)
					return
				}
				times[worker] = append(times[worker], time.Since(started))
			}
		})
	}
	all.Wait()
	took := time.Since(begun)
	if err := context.Cause(ctx); err != nil {
		return Result{}, err
	}
	return summarize(slices.Concat(times...), took), nil
}

// summarize takes nearest-rank percentiles.
func summarize(times []time.Duration, took time.Duration) Result {
	if len(times) == 0 {
		return Result{}
	}
	slices.Sort(times)
	at := func(percent int) float64 {
		rank := (percent*len(times) + 99) / 100
		return float64(times[max(rank, 1)-1]) / float64(time.Millisecond)
	}
	return Result{Count: len(times), PerSecond: float64(len(times)) / took.Seconds(), P50: at(50), P99: at(99)}
}
