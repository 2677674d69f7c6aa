package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Soak simulates one seed after the other, each a cluster and faults of its own, until ctx ends.
type Soak struct {
	Seed    uint64 // the first one
	Seeds   int    // how many; 0 is as many as there is time for
	Workers int    // how many at once; 0 is one
	// Progress is told after each seed; nil is nobody. Failed is told of each result that breaks a promise, one at a time.
	Progress func(Soaked)
	Failed   func(*Result)
}

// Soaked is how far a soak has come.
type Soaked struct {
	Seeds, Failures int
	Virtual         time.Duration
	Next            uint64 // seed
}

// Drawn is the scenario of a seed: its size and length are drawn as well.
func Drawn(seed uint64) (*Scenario, error) {
	chance := rand.New(rand.NewPCG(seed, 0x50a6))
	peers := 3 + chance.IntN(10)
	length := time.Duration(2+chance.IntN(7)) * time.Minute
	return Random(seed, peers, length)
}

// Run simulates. It returns what was done when there are no seeds left or ctx has ended, and an error only if a scenario cannot be run.
func (o Soak) Run(ctx context.Context) (Soaked, error) {
	done := Soaked{Next: o.Seed}
	var mutex sync.Mutex
	var wrong error
	next := func() (uint64, bool) {
		mutex.Lock()
		defer mutex.Unlock()
		if wrong != nil || ctx.Err() != nil || o.Seeds > 0 && done.Next >= o.Seed+uint64(o.Seeds) {
			return 0, false
		}
		done.Next++
		return done.Next - 1, true
	}
	finished := func(result *Result, err error) {
		mutex.Lock()
		defer mutex.Unlock()
		switch {
		case ctx.Err() != nil: // the seed was not simulated to its end
			return
		case err != nil:
			wrong = err
			return
		}
		done.Seeds++
		done.Virtual += result.Simulated
		if len(result.Failed()) > 0 {
			done.Failures++
			if o.Failed != nil {
				o.Failed(result)
			}
		}
		if o.Progress != nil {
			o.Progress(done)
		}
	}
	var workers sync.WaitGroup
	for range max(o.Workers, 1) {
		workers.Go(func() {
			for seed, more := next(); more; seed, more = next() {
				scenario, err := Drawn(seed)
				if err != nil {
					finished(nil, err)
					return
				}
				finished(scenario.Run(ctx, Options{}))
			}
		})
	}
	workers.Wait()
	return done, wrong
}
