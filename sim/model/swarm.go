package model

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Swarm adds so many faults, each on nodes drawn from the seed and ended after a drawn time.
type Swarm struct {
	Faults      int
	From, Until time.Duration // when they begin; the last may end up to longestFault later
	// Kinds are those to draw from; none is a drawn half of SwarmKinds. A run that leaves some kinds out goes deeper into the others
	// (Groce et al., "Swarm testing", ISSTA 2012).
	Kinds []FaultKind
}

const longestFault = 25 * time.Second

// SwarmKinds are the kinds that random faults are drawn from: all that end by themselves, and those that do no harm for long. A disk that
// is lost is not among them: together with another fault it may take a shard's majority for good, so it is drawn only where it is asked for.
var SwarmKinds = []FaultKind{
	Crash, Kill, Freeze, Slow, SlowDisk, FullDisk, Cut, Part, Block, Deaf, Mute, Flap, Lose, Delay, Duplicate, Reorder, Jump, Drift,
	Drain, Handover, Upgrade, Overload,
}

// Draw draws the faults from the seed. They have a source of chance of their own, so that a run in which they are written down instead is the
// same run.
func (s Swarm) Draw(seed uint64, nodes int) []Fault {
	d := drawer{rand.New(rand.NewPCG(seed, 0xfa17))}
	kinds := slices.Clone(s.Kinds)
	if len(kinds) == 0 {
		kinds = slices.DeleteFunc(slices.Clone(SwarmKinds), func(FaultKind) bool { return d.chance.IntN(2) == 0 })
	}
	if len(kinds) == 0 {
		kinds = []FaultKind{Crash}
	}
	var faults []Fault
	for range s.Faults {
		kind := kinds[d.chance.IntN(len(kinds))]
		f := Fault{At: d.between(s.From, s.Until), Kind: kind, Target: fmt.Sprintf("n%d", 1+d.chance.IntN(nodes))}
		d.fill(&f, nodes)
		faults = append(faults, f)
		// A second disk that is lost before the first one's copies are made anew may be one too many, and an upgrade is enough for a run.
		if kind == Wipe || kind == Upgrade {
			kinds = slices.DeleteFunc(kinds, func(k FaultKind) bool { return k == kind })
		}
		if len(kinds) == 0 {
			break
		}
	}
	return faults
}

type drawer struct{ chance *rand.Rand }

func (d drawer) between(least, most time.Duration) time.Duration {
	return least + time.Duration(d.chance.Int64N(int64((most-least)/time.Millisecond)+1))*time.Millisecond
}

// rate draws a number with three digits.
func (d drawer) rate(least, most float64) float64 {
	return least + float64(int((most-least)*1000*d.chance.Float64()))/1000
}

// fill draws what else a fault needs.
func (d drawer) fill(f *Fault, nodes int) {
	form, _ := FormOf(f.Kind)
	if form.Ends != "" {
		f.For = d.between(time.Second, longestFault)
	}
	switch f.Kind {
	case Part, Block:
		f.Other = fmt.Sprintf("n%d", 1+d.chance.IntN(nodes))
	case Slow:
		f.Rate = d.rate(2, 20)
	case SlowDisk:
		f.By = d.between(10*time.Millisecond, 300*time.Millisecond)
	case Flap:
		f.By = d.between(500*time.Millisecond, 5*time.Second)
	case Lose, Duplicate:
		f.Rate = d.rate(0.05, 0.7)
	case Delay, Reorder:
		f.By = d.between(5*time.Millisecond, 300*time.Millisecond)
	case Jump: // half of them within the bounds
		bounds := []time.Duration{time.Second, 30 * time.Second, time.Hour}
		if f.By = d.between(100*time.Millisecond, bounds[d.chance.IntN(len(bounds))]); d.chance.IntN(2) == 0 {
			f.By = -f.By
		}
	case Drift:
		if f.Rate = d.rate(0.001, 0.2); d.chance.IntN(2) == 0 {
			f.Rate = -f.Rate
		}
	case Upgrade:
		f.Target, f.By = "all", d.between(500*time.Millisecond, 3*time.Second)
	case Overload:
		f.Target, f.Count, f.By = "", 1+d.chance.IntN(20), d.between(20*time.Millisecond, 200*time.Millisecond)
	}
}
