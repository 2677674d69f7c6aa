package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"shoal/consensus/store"
)

// applier drives a hub as a raft replica does.
type applier struct {
	store *store.Store
	hub   *hub
}

func newApplier(limits store.Limits) *applier {
	s := store.New(1, limits)
	return &applier{s, newHub(s.View())}
}

func (a *applier) put(keys ...string) {
	var events []store.Event
	for i, key := range keys {
		_, evs := a.store.Apply(store.Transaction{
			Ops: []store.Op{{Key: key, Value: fmt.Appendf(nil, "%d-%v", i, a.store.View().Revision())}},
		})
		events = append(events, evs...)
	}
	a.hub.publish(a.store.View(), events)
}

func subscribe(t interface{ Fatal(...any) }, h *hub, opts WatchOptions) *subscription {
	s, err := h.subscribe(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSubscriptionsSeeEveryEventOnce reads while it applies, over replacements of
// the replica's state.
func TestSubscriptionsSeeEveryEventOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := newApplier(store.Limits{})
		prefixes := []string{"", "a", "a/", "b"}
		got := make([][]store.Event, len(prefixes))
		var readers sync.WaitGroup
		for i, prefix := range prefixes {
			s := subscribe(t, a.hub, WatchOptions{Prefix: prefix, Progress: i%2 == 0})
			readers.Go(func() {
				for {
					events, err := s.next(context.Background())
					got[i] = append(got[i], events...)
					if err != nil {
						return
					}
				}
			})
		}
		for range rapid.IntRange(1, 30).Draw(t, "batches") {
			a.put(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "a/1", "ab", "b", "c"}), 1, 700).Draw(t, "keys")...)
			if rapid.IntRange(0, 9).Draw(t, "reset") == 0 {
				a.hub.reset(a.store.View())
			}
		}
		a.hub.close()
		readers.Wait()
		for i, prefix := range prefixes {
			checkDelivery(t, a.store.View(), prefix, got[i])
		}
	})
}

func checkDelivery(t *rapid.T, v store.View, prefix string, got []store.Event) {
	want, _, err := v.Events(0, prefix, 1<<30, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	n, mark := 0, store.Revision(0)
	for _, ev := range got {
		if ev.Revision <= mark {
			t.Fatalf("%q: %v came after the mark %v", prefix, ev.Revision, mark)
		}
		if ev.Progress {
			mark = ev.Revision
			if n < len(want) && want[n].Revision <= mark {
				t.Fatalf("%q: mark %v before event %v", prefix, mark, want[n].Revision)
			}
			continue
		}
		if n >= len(want) || want[n].Revision != ev.Revision {
			t.Fatalf("%q: event %d is %v", prefix, n, ev.Revision)
		}
		n++
	}
	if n != len(want) {
		t.Fatalf("%q: %d of %d events", prefix, n, len(want))
	}
}

func TestSlowSubscriptionsAreCutAndIdleOnesAreNot(t *testing.T) {
	a := newApplier(store.Limits{Bytes: 20_000})
	slow := subscribe(t, a.hub, WatchOptions{Prefix: "busy"})
	idle := subscribe(t, a.hub, WatchOptions{Prefix: "idle"})
	if _, _, err := idle.read(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		a.put("busy")
	}
	a.put("idle")
	if _, err := slow.next(context.Background()); !errors.Is(err, ErrSlowWatcher) {
		t.Errorf("slow: %v", err)
	}
	if events, err := idle.next(context.Background()); err != nil || len(events) != 1 {
		t.Errorf("idle: %v, %v", events, err)
	}
	if _, err := a.hub.subscribe(WatchOptions{After: 1}); !errors.Is(err, ErrCompacted) {
		t.Errorf("from before the history: %v", err)
	}
	slow.stop()
	idle.stop()
	if n := a.hub.byPrefix.Len() + len(a.hub.progress) + len(a.hub.marking); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

// TestMarksComeWhenAskedFor: a subscription without events stays asleep until the
// shard is where somebody wants to know it.
func TestMarksComeWhenAskedFor(t *testing.T) {
	a := newApplier(store.Limits{})
	a.put("busy")
	s := subscribe(t, a.hub, WatchOptions{Prefix: "idle"})
	<-s.wake // a new one looks once
	if events, _, err := s.read(); err != nil || len(events) != 0 {
		t.Fatalf("unasked: %v, %v", events, err)
	}
	at := a.store.View().Revision()
	s.want(0)
	if events, err := s.next(context.Background()); err != nil || len(events) != 1 || events[0].Revision != at {
		t.Fatalf("at once: %v, %v", events, err)
	}
	const step = 2 * store.Tick // from one transaction to the next
	s.want(at + 5*step)
	s.want(at + 2*step)
	for _, want := range []store.Revision{at + 2*step, at + 5*step} {
		s.drain()
		for a.store.View().Revision() < want {
			if s.drain() {
				t.Errorf("woken at %v for %v", a.store.View().Revision(), want)
			}
			a.put("busy")
		}
		events, err := s.next(context.Background())
		if err != nil || len(events) != 1 || !events[0].Progress || events[0].Revision != want {
			t.Fatalf("at %v: %v, %v", want, events, err)
		}
	}
	if n := len(a.hub.marking); n != 0 {
		t.Errorf("%d still wait for a mark", n)
	}
}

// drain says whether the subscription was woken, and forgets it.
func (s *subscription) drain() bool {
	select {
	case <-s.wake:
		return true
	default:
		return false
	}
}

func TestAWatchFromTheFutureWaitsForIt(t *testing.T) {
	a := newApplier(store.Limits{})
	a.put("k")
	now := a.store.View().Revision()
	const step = 2 * store.Tick // from one transaction to the next
	s := subscribe(t, a.hub, WatchOptions{After: now + 2*step, Progress: true})
	a.put("k")
	a.put("k")
	a.put("k")
	events, err := s.next(context.Background())
	if err != nil || len(events) != 2 || events[0].Revision != now+3*step || !events[1].Progress {
		t.Errorf("%+v, %v", events, err)
	}
}

// TestConcurrentClosesShareEntries: whoever calls while an entry is under way gets
// the next one, which all of them share.
func TestConcurrentClosesShareEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := closers{spawn: func(f func()) bool { go f(); return true }}
		entries := 0
		gate := make(chan struct{})
		do := func(_ context.Context, _ uint64, upTo store.Revision) (store.Revision, error) {
			entries++
			<-gate
			return upTo, nil
		}
		var calls sync.WaitGroup
		call := func(upTo store.Revision) {
			calls.Go(func() {
				at, err := c.close(t.Context(), 1, upTo, do)
				if err != nil || at < upTo {
					t.Errorf("close %v: %v, %v", upTo, at, err)
				}
			})
		}
		call(1)
		synctest.Wait()
		for i := range store.Revision(50) {
			call(2 + i)
		}
		synctest.Wait()
		close(gate)
		calls.Wait()
		if entries != 2 {
			t.Errorf("51 calls made %d entries", entries)
		}
	})
}
