package load

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestFanoutCountsEveryDelivery(t *testing.T) {
	const watchers = 20
	var mu sync.Mutex
	writes := 0
	channels := make([]chan int, watchers)
	for i := range channels {
		channels[i] = make(chan int, 1000)
	}
	result, err := Fanout(t.Context(), watchers, 50*time.Millisecond, func(_ context.Context, n int) error {
		mu.Lock()
		writes++
		mu.Unlock()
		for _, c := range channels {
			c <- n
		}
		return nil
	}, func(ctx context.Context, watcher int, ready func(), seen func(int)) error {
		ready()
		for {
			select {
			case <-ctx.Done():
				return nil
			case n := <-channels[watcher]:
				seen(n)
			}
		}
	}, func() error { return nil })
	if err != nil || result.Count != writes*watchers || writes == 0 {
		t.Errorf("%d writes to %d watchers: %+v, %v", writes, watchers, result, err)
	}
}

func TestFanoutEndsWithItsWatches(t *testing.T) {
	broken := errors.New("broken")
	_, err := Fanout(t.Context(), 3, time.Minute, func(context.Context, int) error { return nil },
		func(ctx context.Context, watcher int, ready func(), _ func(int)) error {
			ready()
			if watcher == 1 {
				return broken
			}
			<-ctx.Done()
			return nil
		}, func() error { return nil })
	if !errors.Is(err, broken) {
		t.Errorf("ended with %v", err)
	}
}
