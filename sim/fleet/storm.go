package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"shoal/consensus"
	"shoal/sim/history"
)

// Mode is how a run hurts the fleet.
type Mode string

// The modes. A storm befalls any machines, a majority included, one fault beginning before others are over. What may never happen must not
// happen in it, but nobody is owed an answer.
const (
	// OneByOne has each fault over, and who it befell back, before the next: users are owed most answers all the time.
	OneByOne Mode = ""
	// Safety is a storm, after which everything is healed.
	Safety Mode = "safety"
	// Liveness is a storm, after which a core that holds a majority of every shard is healed and has to do without the rest.
	Liveness Mode = "liveness"
)

// storm draws faults from the seed until a moment, one machine having one at a time, and waits until all are over.
func (n *nemesis) storm(ctx context.Context, until time.Time) error {
	var faults sync.WaitGroup
	var mu sync.Mutex
	hurt, clocks := map[*Machine]bool{}, false
	for time.Now().Before(until) && ctx.Err() == nil {
		kind := n.kinds[n.chance.IntN(len(n.kinds))]
		victims := n.fleet.Machines()
		n.chance.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		some := victims[:1+n.chance.IntN(len(victims))]
		lasts := time.Second + time.Duration(n.chance.Int64N(int64(20*time.Second)))
		then := time.Duration(n.chance.Int64N(int64(6 * time.Second)))
		mu.Lock()
		switch {
		case kind.clock && clocks:
			some = nil
		case kind.clock:
			some = kind.machines(victims)
		}
		some = slices.DeleteFunc(some, func(m *Machine) bool { return hurt[m] })
		for _, m := range some {
			hurt[m] = true
		}
		clocks = clocks || kind.clock && len(some) > 0
		mu.Unlock()
		if len(some) > 0 {
			n.story.report.Faults++
			faults.Go(func() {
				n.befall(ctx, kind, some, lasts)
				mu.Lock()
				defer mu.Unlock()
				for _, m := range some {
					delete(hurt, m)
				}
				clocks = clocks && !kind.clock
			})
		}
		_ = pause(ctx, then)
	}
	faults.Wait()
	return ctx.Err()
}

// befall is one fault from its beginning to its end.
func (n *nemesis) befall(ctx context.Context, kind Fault, victims []*Machine, lasts time.Duration) {
	names := namesOf(victims)
	n.story.note("%s%s for %.1f s", kind.Name, names, lasts.Seconds())
	n.story.trouble(victims, true, kind.power)
	recorder := n.story.users.crowd.Recorder
	began := recorder.Now()
	kind.begin(n.fleet, victims)
	_ = pause(ctx, lasts) // what has begun is ended also when the run is
	kind.end(n.fleet, victims)
	n.story.note("%s%s is over", kind.Name, names)
	minority := n.story.plan.Mode == OneByOne && 2*len(victims) < len(n.fleet.Machines())
	recorder.Fault(history.Fault{Kind: kind.Name, What: kind.Name + names, Begin: began, End: recorder.Now(), Minority: minority})
}

func namesOf(machines []*Machine) string {
	names := ""
	for _, m := range machines {
		names += " " + m.Name
	}
	return names
}

// calm ends a storm: either nothing is wrong any more, or a core has to do without the rest, which stays cut off or without power.
func (n *nemesis) calm(ctx context.Context) error {
	n.fleet.Network.SetWeather(Calm)
	all := n.fleet.Machines()
	for _, m := range all {
		if !n.fleet.Running(m) {
			n.fleet.Start(m)
		}
	}
	if n.story.plan.Mode != Liveness {
		n.story.trouble(all, false, false)
		return nil
	}
	core, rest, err := n.chooseCore(ctx, all)
	if err != nil {
		return err
	}
	dark := n.chance.IntN(2) == 0
	n.story.note("from now on%s have to do without%s", namesOf(core), namesOf(rest))
	n.story.trouble(core, false, false)
	n.story.trouble(rest, true, dark)
	for _, m := range rest {
		if dark {
			n.fleet.Crash(m)
		} else {
			n.fleet.Isolate(m, true)
		}
	}
	n.story.core = core
	return nil
}

// chooseCore draws machines that hold a majority of every shard's voters, as few as half of all if there are such.
func (n *nemesis) chooseCore(ctx context.Context, all []*Machine) (core, rest []*Machine, err error) {
	for range 600 {
		groups := n.fleet.groups()
		n.chance.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for size := len(all)/2 + 1; size < len(all); size++ {
			ids := map[string]bool{}
			for _, m := range all[:size] {
				ids[m.ID()] = true
			}
			if holdsAll(groups, ids, n.fleet.shards()) {
				return slices.Clone(all[:size]), slices.Clone(all[size:]), nil
			}
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, errors.New("a minute after the storm no core holds a majority of every shard")
}

// holdsAll tells whether some peers hold a majority of the voters of every shard, all of which have to be known.
func holdsAll(groups map[uint64]consensus.ShardStatus, peers map[string]bool, shards map[uint64]bool) bool {
	for shard := range shards {
		group, led := groups[shard]
		voters, held := 0, 0
		for _, member := range group.Members {
			if member.Voter {
				voters++
				if peers[member.Peer] {
					held++
				}
			}
		}
		if !led || 2*held <= voters {
			return false
		}
	}
	return len(shards) > 0
}

// shards are all shards that any peer knows of.
func (f *Fleet) shards() map[uint64]bool {
	shards := map[uint64]bool{}
	for _, m := range f.Machines() {
		if inside, there := f.Inside(m); there {
			for _, shard := range inside.Store.Shards() {
				shards[shard] = true
			}
		}
	}
	return shards
}

// hurtFleet has the nemesis do its work as the mode says.
func (r *run) hurtFleet(ctx context.Context, n *nemesis) error {
	until := time.Now().Add(r.plan.For)
	if r.plan.Mode == OneByOne {
		return n.run(ctx, until)
	}
	if err := n.storm(ctx, until); err != nil {
		return err
	}
	if err := n.calm(ctx); err != nil {
		return fmt.Errorf("after the storm: %w", err)
	}
	return nil
}
