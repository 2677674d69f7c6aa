package sim

import (
	"time"

	"shoal/sim/model"
)

// Times of liveness mode: how long after the last fault has begun the core is healed, how long it may take to come to rest, and how long the run
// goes on.
const (
	coreAfter  = time.Second
	coreWithin = time.Minute
	coreQuiet  = 70 * time.Second
)

// Liveness makes the scenario one of liveness mode: its faults happen as they are, but once the last has begun, a drawn core that holds most
// voters of every shard is healed, all others stay as they are and out of reach, and the core has to be as desired within a minute. What
// else the text expects is expected no more: it was said of a cluster of which everything heals. A scenario that has a core already
// stays as it is.
func (s *Scenario) Liveness() error {
	var last time.Duration
	for _, f := range s.Faults() {
		if f.Kind == model.Core {
			return nil
		}
		last = max(last, f.At)
	}
	at := last + coreAfter
	s.Config.Faults = append(s.Config.Faults, model.Fault{At: at, Kind: model.Core, Target: "quorum"})
	s.Config.Length = max(s.Config.Length, at+coreQuiet)
	s.Name += "-liveness"
	s.Expects = nil
	return s.Expect("expect ready within " + coreWithin.String())
}
