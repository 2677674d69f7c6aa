package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"shoal/sim/history"
)

// Fault is one kind of trouble. It begins, lasts, and ends; machines are those it befalls.
type Fault struct {
	Name string
	// machines is how many it befalls; a minority of the fleet whatever it says.
	machines func(all int) int
	begin    func(f *Fleet, victims []*Machine)
	end      func(f *Fleet, victims []*Machine)
	// power says that containers end with it.
	power bool
}

func one(int) int        { return 1 }
func minority(n int) int { return (n - 1) / 2 }

// Faults are all kinds, in a fixed order: the seed chooses by number.
var Faults = []Fault{
	{Name: "kill", machines: one, begin: each((*Fleet).Kill), end: each((*Fleet).Start)},
	{Name: "restart", machines: one, begin: each(func(f *Fleet, m *Machine) { _ = f.Stop(m) }), end: each((*Fleet).Start)},
	{Name: "crash", machines: one, power: true, begin: each((*Fleet).Crash), end: each(func(f *Fleet, m *Machine) {
		f.Isolate(m, false)
		f.Start(m)
	})},
	{Name: "isolate", machines: one, begin: isolated(true), end: isolated(false)},
	{Name: "split", machines: minority, begin: apart(true), end: apart(false)},
	{Name: "deaf", machines: one, begin: oneWay(false, true), end: oneWay(false, false)},
	{Name: "mute", machines: one, begin: oneWay(true, true), end: oneWay(true, false)},
	{Name: "flap", machines: one, begin: each((*Fleet).flap), end: isolated(false)},
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
		victims := all[:max(1, kind.machines(len(all)))]
		names := ""
		for _, m := range victims {
			names += " " + m.Name
		}
		lasts := time.Second + time.Duration(n.chance.Int64N(int64(25*time.Second)))
		n.story.note("%s%s for %.1f s", kind.Name, names, lasts.Seconds())
		n.story.report.Faults++
		n.story.trouble(victims, true, kind.power)
		began := n.story.users.crowd.Recorder.Now()
		kind.begin(n.fleet, victims)
		time.Sleep(lasts)
		kind.end(n.fleet, victims)
		n.story.note("%s%s is over", kind.Name, names)
		n.story.users.crowd.Recorder.Fault(history.Fault{
			Kind: kind.Name, What: kind.Name + names, Begin: began, End: n.story.users.crowd.Recorder.Now(), Minority: 2*len(victims) < len(all),
		})
		for _, m := range victims {
			if err := n.fleet.AwaitReady(ctx, m); err != nil {
				return fmt.Errorf("after %s: %w", kind.Name, err)
			}
		}
		n.story.trouble(victims, false, false)
		time.Sleep(time.Duration(n.chance.Int64N(int64(10 * time.Second))))
	}
	return ctx.Err()
}
