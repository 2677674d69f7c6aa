package load

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRunKeepsWorkersBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		result, err := Run(t.Context(), 4, time.Second, func(context.Context, int) error {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(10 * time.Millisecond)
			now.Add(-1)
			return nil
		})
		want := Result{Count: 400, PerSecond: 400, P50: 10, P99: 10}
		if err != nil || result != want {
			t.Errorf("%+v, %v; want %+v", result, err, want)
		}
		if most.Load() != 4 {
			t.Errorf("%d in flight, want 4", most.Load())
		}
	})
}

func TestRunStopsAtAnError(t *testing.T) {
	broken := errors.New("broken")
	_, err := Run(t.Context(), 2, time.Minute, func(context.Context, int) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestSummarize(t *testing.T) {
	var times []time.Duration
	for i := 200; i > 0; i-- {
		times = append(times, time.Duration(i)*time.Millisecond)
	}
	want := Result{Count: 200, PerSecond: 100, P50: 100, P99: 198}
	if got := summarize(times, 2*time.Second); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summarize(nil, time.Second); got != (Result{}) {
		t.Errorf("of nothing: %+v", got)
	}
}
