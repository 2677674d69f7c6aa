package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"shoal/consensus"
)

// Fault is one kind of trouble. It begins, lasts, and ends; machines are those it befalls.
type Fault struct {
	Name string
	// machines are those of all, which come in a drawn order, that it befalls.
	machines func(all []*Machine) []*Machine
	begin    func(f *Fleet, victims []*Machine)
	end      func(f *Fleet, victims []*Machine)
	// power says that containers end with it.
	power bool
	// clock says that it befalls wall clocks. Most must be right at any time: what most say is what time it is.
	clock bool
}

func one(all []*Machine) []*Machine      { return all[:1] }
func minority(all []*Machine) []*Machine { return all[:max(1, (len(all)-1)/2)] }

// zone is all of one zone, if that is a minority.
func zone(all []*Machine) []*Machine {
	var there []*Machine
	for _, m := range all {
		if m.Zone == all[0].Zone {
			there = append(there, m)
		}
	}
	if 2*len(there) >= len(all) {
		return one(all)
	}
	return there
}

// Faults are all kinds, in a fixed order: the seed chooses by number.
var Faults = []Fault{
	{Name: "kill", machines: one, begin: each((*Fleet).Kill), end: each((*Fleet).Start)},
	{Name: "restart", machines: one, begin: each(func(f *Fleet, m *Machine) { _ = f.Stop(m) }), end: each((*Fleet).Start)},
	{Name: "crash", machines: one, power: true, begin: each((*Fleet).Crash), end: each(func(f *Fleet, m *Machine) {
		f.Isolate(m, false)
		f.Start(m)
	})},
	{Name: "zone", machines: zone, power: true, begin: each((*Fleet).Crash), end: each(func(f *Fleet, m *Machine) {
		f.Isolate(m, false)
		f.Start(m)
	})},
	{Name: "leaders", machines: one, begin: func(f *Fleet, _ []*Machine) { f.moveLeaders() }, end: func(*Fleet, []*Machine) {}},
	{Name: "isolate", machines: one, begin: isolated(true), end: isolated(false)},
	{Name: "split", machines: minority, begin: apart(true), end: apart(false)},
	{Name: "deaf", machines: one, begin: oneWay(false, true), end: oneWay(false, false)},
	{Name: "mute", machines: one, begin: oneWay(true, true), end: oneWay(true, false)},
	{Name: "flap", machines: one, begin: each((*Fleet).flap), end: isolated(false)},
	{Name: "slow", machines: one, begin: slowBy(150 * time.Millisecond), end: slowBy(0)},
	{Name: "clock ahead", machines: one, clock: true, begin: clockBy(3 * time.Hour), end: clockBy(0)},
	{Name: "clock behind", machines: one, clock: true, begin: clockBy(-3 * time.Hour), end: clockBy(0)},
	{Name: "clock a little off", machines: minority, clock: true, begin: clockBy(time.Second), end: clockBy(0)},
	{Name: "loss", machines: one, begin: weather(Weather{
		Delay: time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.05, Double: 0.05, Retransmit: 200 * time.Millisecond,
	}), end: weather(Calm)},
	{Name: "delay", machines: one, begin: weather(Weather{
		Delay: 40 * time.Millisecond, Jitter: 40 * time.Millisecond, Retransmit: 400 * time.Millisecond,
	}), end: weather(Calm)},
}

func isolated(cut bool) func(*Fleet, []*Machine) {
	return each(func(f *Fleet, m *Machine) { f.Isolate(m, cut) })
}

func slowBy(by time.Duration) func(*Fleet, []*Machine) {
	return each(func(f *Fleet, m *Machine) { f.Network.Slow(m.Address, by) })
}

func clockBy(ahead time.Duration) func(*Fleet, []*Machine) {
	return each(func(_ *Fleet, m *Machine) { m.SetClock(ahead) })
}

func apart(cut bool) func(*Fleet, []*Machine) {
	return func(f *Fleet, machines []*Machine) { f.split(machines, cut) }
}

func oneWay(sends, cut bool) func(*Fleet, []*Machine) {
	return each(func(f *Fleet, m *Machine) { f.oneWay(m, sends, cut) })
}

func each(do func(*Fleet, *Machine)) func(*Fleet, []*Machine) {
	return func(f *Fleet, machines []*Machine) {
		for _, m := range machines {
			do(f, m)
		}
	}
}

func weather(w Weather) func(*Fleet, []*Machine) {
	return func(f *Fleet, _ []*Machine) { f.Network.SetWeather(w) }
}

// split cuts some machines off from the rest; among themselves they hear each other, and clients hear all.
func (f *Fleet) split(some []*Machine, cut bool) {
	inside := map[*Machine]bool{}
	for _, m := range some {
		inside[m] = true
	}
	for _, m := range some {
		for _, other := range f.Machines() {
			if !inside[other] {
				f.Network.Cut(m.Address, other.Address, cut)
				f.Network.Cut(other.Address, m.Address, cut)
			}
		}
	}
}

// oneWay cuts what a machine sends to all others, or what it receives from them.
func (f *Fleet) oneWay(m *Machine, sends, cut bool) {
	for _, other := range f.Machines() {
		switch {
		case other == m:
		case sends:
			f.Network.Cut(m.Address, other.Address, cut)
		default:
			f.Network.Cut(other.Address, m.Address, cut)
		}
	}
}

// moveLeaders has every shard led by another voter, whom it likes, four times in four seconds.
func (f *Fleet) moveLeaders() {
	for range 4 {
		for shard, group := range f.groups() {
			for _, m := range f.Machines() {
				inside, there := f.Inside(m)
				if !there || inside.PeerID != group.Leader {
					continue
				}
				to := slices.IndexFunc(group.Members, func(member consensus.Member) bool { return member.Voter && member.Peer != group.Leader })
				if to >= 0 {
					ctx, cancel := context.WithTimeout(f.ctx, time.Second)
					_ = inside.Store.TransferLeadership(ctx, shard, group.Members[to].Peer) // one that cannot take over does not
					cancel()
				}
			}
		}
		time.Sleep(time.Second)
	}
}

// flap cuts a machine off and joins it again, six times in six seconds.
func (f *Fleet) flap(m *Machine) {
	for range 6 {
		f.Isolate(m, true)
		time.Sleep(500 * time.Millisecond)
		f.Isolate(m, false)
		time.Sleep(500 * time.Millisecond)
	}
}

// nemesis draws faults from the seed until a moment, one after the other, and heals each before the next.
type nemesis struct {
	fleet  *Fleet
	chance *rand.Rand
	kinds  []Fault
	story  *run
}

func (n *nemesis) run(ctx context.Context, until time.Time) error {
	for time.Now().Before(until) && ctx.Err() == nil {
		kind := n.kinds[n.chance.IntN(len(n.kinds))]
		all := n.fleet.Machines()
		n.chance.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		victims := kind.machines(all)
		n.story.report.Faults++
		n.befall(ctx, kind, victims, time.Second+time.Duration(n.chance.Int64N(int64(25*time.Second))))
		for _, m := range victims {
			if err := n.fleet.AwaitReady(ctx, m); err != nil {
				return fmt.Errorf("after %s: %w", kind.Name, err)
			}
		}
		n.story.trouble(victims, false, false)
		_ = pause(ctx, time.Duration(n.chance.Int64N(int64(10*time.Second))))
	}
	return ctx.Err()
}
