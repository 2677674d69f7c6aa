package consensus

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"shoal/consensus/store"
)

const (
	// clockPatience bounds how long a first stamp waits for other peers' clocks.
	clockPatience = time.Second
	// clockAge is how long what they said counts, if Config.Offset goes on not
	// knowing.
	clockAge = 10 * time.Second
)

// clockReading is what one peer says about its clock.
type clockReading struct {
	// Now is its wall clock, in nanoseconds since 1970.
	Now int64 `cbor:"1,keyasint"`
	// Ahead is how far it is ahead of the peers' median, in nanoseconds, if Known.
	Ahead int64 `cbor:"2,keyasint,omitempty"`
	Known bool  `cbor:"3,keyasint,omitempty"`
}

// askedClock is how far this host's clock is ahead of the other peers', as they say
// when they are asked: until Config.Offset knows, which takes a quorum, and stamps
// are made before. A host that comes back with a clock that is hours ahead would
// lift a shard's revisions up there with its very first write.
type askedClock struct {
	// asking is held while the others are asked; who has to know meanwhile waits for their answers, or for its own end.
	asking *semaphore.Weighted
	at     time.Time // by the monotonic clock; zero: never asked
	wall   time.Time // the same moment by Config.Now, which may be set since
	ahead  time.Duration
	known  bool
}

// ClockAhead is how far this host's clock is ahead of the median of the peers'
// clocks: by Config.Offset, and where that does not know, by what the other peers say
// when they are asked. It is not known when nobody answers.
func (h *Host) ClockAhead(ctx context.Context) (ahead time.Duration, known bool) {
	ahead, known = h.cfg.Offset()
	if known || !h.cfg.asksClocks {
		return ahead, known
	}
	a := &h.asked
	if a.asking.Acquire(ctx, 1) != nil {
		return 0, false
	}
	defer a.asking.Release(1)
	if age := time.Since(a.at); a.known && age < clockAge || age < clockPatience {
		return a.ahead + h.cfg.Now().Round(0).Sub(a.wall) - age, a.known
	}
	a.ahead, a.known = h.askClocks(ctx)
	a.at, a.wall = time.Now(), h.cfg.Now().Round(0)
	return a.ahead, a.known
}

// askClocks asks every peer that is believed alive; known is false if none of them
// answered, as when there is none.
func (h *Host) askClocks(ctx context.Context) (ahead time.Duration, known bool) {
	ctx, cancel := context.WithTimeout(ctx, clockPatience)
	defer cancel()
	var (
		mu       sync.Mutex
		all      sync.WaitGroup
		readings []store.ClockOffset
	)
	for _, peer := range h.cfg.Peers() {
		if peer == h.cfg.PeerID {
			continue
		}
		all.Go(func() {
			begun, before := time.Now(), h.cfg.Now()
			a, err := h.ask(ctx, peer, call{Verb: verbClock}, clockPatience)
			if err != nil || a.Clock == nil {
				return // gone, or of a version that does not know the question
			}
			middle := before.Add(time.Since(begun) / 2)
			offset := store.ClockOffset{Ahead: middle.Sub(time.Unix(0, a.Clock.Now)), Median: a.Clock.Known}
			if a.Clock.Known {
				offset.Ahead += time.Duration(a.Clock.Ahead)
			}
			mu.Lock()
			defer mu.Unlock()
			readings = append(readings, offset)
		})
	}
	all.Wait()
	return store.AheadOf(readings)
}

// readClock answers another host's question.
func (h *Host) readClock() *clockReading {
	ahead, known := h.cfg.Offset()
	return &clockReading{Now: h.cfg.Now().UnixNano(), Ahead: int64(ahead), Known: known}
}
