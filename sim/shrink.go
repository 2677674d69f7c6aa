package sim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"shoal/sim/model"
)

// Shrinking makes a scenario that violates a promise as short as it can be, so that a person can see what it takes.
type Shrinking struct {
	// Attempts bounds how many simulations are made; 0 is 400. The time is bounded by the context.
	Attempts int
	// Progress is told after every attempt what the shortest scenario so far is; nil is nobody.
	Progress func(attempts int, shortest *Scenario)
}

// Shrunk is what came of it.
type Shrunk struct {
	Scenario  *Scenario
	Violation model.Violation // what it shows, of the same checker as the one that was looked for
	Attempts  int
}

const (
	defaultAttempts = 400
	// firstFault is early enough to be quick, and late enough that all pods run.
	firstFault = 10 * time.Second
	// slack is added to the bound of convergence, for the checker to come by.
	slack = time.Second
)

// Violated is the promise that a result broke first.
func (r *Result) Violated() (model.Violation, bool) {
	if len(r.Outcome.Violations) == 0 {
		return model.Violation{}, false
	}
	return r.Outcome.Violations[0], true
}

// Shrink looks for a scenario that is shorter than s and shows a violation of the same checker: fewer faults, workloads, machines and shards,
// less time. It stops when nothing can be left out any more, when it has tried often enough, or when ctx ends, and answers with the
// shortest one found. A single run decides about each attempt, since the same text always does the same.
//
// Beginning and end of a fault are left out together, and room for all pods is kept, because a cluster that is never healed, or too small,
// breaks no promise by not converging. Expectations other than that are not looked at: without faults, few of them would hold.
func (s *Scenario) Shrink(ctx context.Context, found model.Violation, o Shrinking) Shrunk {
	if o.Attempts == 0 {
		o.Attempts = defaultAttempts
	}
	k := &shrinker{ctx: ctx, options: o, checker: found.Checker, room: min(room(s.Config), 2), best: Shrunk{Scenario: s.plain(found.Checker), Violation: found}}
	k.cut(found)
	for before := math.Inf(1); k.open() && k.size() < before; {
		before = k.size()
		k.leaveOutFaults()
		k.begin()
		k.leaveOutWorkloads()
		k.leaveOutMachines()
		k.shorten()
	}
	k.best.Attempts = k.attempts
	return k.best
}

// plain is the scenario with all its faults written down, expecting only what a checker looks at.
func (s *Scenario) plain(checker string) *Scenario {
	p := *s
	p.Config.Faults, p.Config.Random = s.Faults(), model.Swarm{}
	p.Expects, p.marks = nil, nil
	if within := p.Config.ReadyWithin; checker == model.CheckerConvergence && within > 0 {
		if err := p.Expect("expect ready within " + within.String()); err != nil {
			panic(err) // it was read from such a line
		}
		return &p
	}
	p.Config.ReadyWithin = 0
	return &p
}

type shrinker struct {
	ctx      context.Context
	options  Shrinking
	checker  string
	room     float64 // that must be left, see room
	attempts int
	best     Shrunk
}

func (k *shrinker) open() bool { return k.attempts < k.options.Attempts && k.ctx.Err() == nil }

// size orders scenarios.
func (k *shrinker) size() float64 {
	c := k.best.Scenario.Config
	size := 100*float64(len(c.Faults)) + float64(c.Nodes+c.Shards) + c.Length.Seconds()
	for _, w := range c.Workloads {
		size += 10 + math.Log2(float64(1+w.Replicas))
	}
	return size
}

// otherSeeds are tried with a variant that does not fail with the seed of the original: whatever is left out, everything that is drawn
// afterwards is drawn differently.
const otherSeeds = 2

// try runs a variant of the best scenario. If the same checker finds something, the variant is the best from now on.
func (k *shrinker) try(change func(*model.Config)) bool {
	for other := range uint64(1 + otherSeeds) {
		if k.open() && k.run(other, change) {
			return true
		}
	}
	return false
}

func (k *shrinker) run(other uint64, change func(*model.Config)) bool {
	variant := *k.best.Scenario
	c := &variant.Config
	c.Faults, c.Workloads = slices.Clone(c.Faults), slices.Clone(c.Workloads)
	c.Seed += other
	change(c)
	if k.checker == model.CheckerConvergence {
		if len(c.Faults) == 0 || room(*c) < k.room {
			return false
		}
		c.Length = max(c.Length, variant.End()+c.ReadyWithin+slack)
	}
	k.attempts++
	outcome, err := model.RunContext(k.ctx, *c)
	ok := false
	if at := slices.IndexFunc(outcome.Violations, func(v model.Violation) bool { return v.Checker == k.checker }); err == nil && at >= 0 {
		k.best.Scenario, k.best.Violation, ok = &variant, outcome.Violations[at], true
	}
	if k.options.Progress != nil {
		k.options.Progress(k.attempts, k.best.Scenario)
	}
	return ok
}

// cut leaves out what comes after a violation.
func (k *shrinker) cut(found model.Violation) {
	if c := k.best.Scenario.Config; found.At >= c.Length && k.checker != model.CheckerConvergence {
		// It was judged at the end, by what clients were told: the end must come later than the faults, nobody knows how much.
		if length := k.best.Scenario.End() + 5*time.Second; length < c.Length {
			k.try(func(c *model.Config) { c.Length = length })
		}
		return
	}
	k.try(func(c *model.Config) {
		if k.checker == model.CheckerConvergence {
			c.Length = 0 // as much as the bound needs
			return
		}
		c.Length = (found.At + time.Second).Truncate(time.Second) + time.Second
		c.Faults = slices.DeleteFunc(c.Faults, func(f model.Fault) bool { return f.At > found.At })
	})
}

func (k *shrinker) shorten() { k.cut(k.best.Violation) }

// leaveOutFaults leaves out ever smaller parts of the faults (Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002).
func (k *shrinker) leaveOutFaults() {
	for parts := 2; k.open(); {
		all := units(k.best.Scenario.Config.Faults)
		if len(all) == 0 {
			return
		}
		parts = min(parts, len(all))
		less := false
		for i := range parts {
			gone := map[int]bool{}
			for _, unit := range all[i*len(all)/parts : (i+1)*len(all)/parts] {
				for _, index := range unit {
					gone[index] = true
				}
			}
			if less = k.try(func(c *model.Config) {
				var kept []model.Fault
				for index, f := range c.Faults {
					if !gone[index] {
						kept = append(kept, f)
					}
				}
				c.Faults = kept
			}); less {
				break
			}
		}
		switch {
		case less:
			parts = max(parts-1, 2)
		case parts == len(all):
			return
		default:
			parts *= 2
		}
	}
}

// units are the indexes of faults that are left out together: a beginning with the end that belongs to it.
func units(faults []model.Fault) [][]int {
	var all [][]int
	taken := make([]bool, len(faults))
	for i, f := range faults {
		if taken[i] {
			continue
		}
		unit := []int{i}
		form, _ := model.FormOf(f.Kind)
		for j := i + 1; j < len(faults) && form.Ends != "" && f.For == 0; j++ {
			if !taken[j] && faults[j].Kind == form.Ends && faults[j].Target == f.Target {
				taken[j] = true
				unit = append(unit, j)
				break
			}
		}
		all = append(all, unit)
	}
	return all
}

// begin moves everything to an earlier time.
func (k *shrinker) begin() {
	faults := k.best.Scenario.Config.Faults
	if len(faults) == 0 || faults[0].At <= firstFault {
		return
	}
	by := faults[0].At - firstFault
	k.try(func(c *model.Config) {
		for i := range c.Faults {
			c.Faults[i].At -= by
		}
		c.Length -= by
	})
}

func (k *shrinker) leaveOutWorkloads() {
	if k.best.Scenario.Config.Operators {
		k.try(func(c *model.Config) { c.Operators = false })
	}
	for i := len(k.best.Scenario.Config.Workloads) - 1; i >= 0; i-- {
		if k.try(func(c *model.Config) { c.Workloads = slices.Delete(c.Workloads, i, i+1) }) {
			continue
		}
		if w := k.best.Scenario.Config.Workloads[i]; w.Folder != "" || w.Job != nil {
			continue // its manifest says how many, or its completions do
		}
		for replicas := k.best.Scenario.Config.Workloads[i].Replicas / 2; replicas >= 1; replicas /= 2 {
			if !k.try(func(c *model.Config) { c.Workloads[i].Replicas = replicas }) {
				break
			}
		}
	}
}

func (k *shrinker) leaveOutMachines() {
	for shards := k.best.Scenario.Config.Shards / 2; shards >= 1; shards /= 2 {
		if !k.try(func(c *model.Config) { c.Shards = shards }) {
			break
		}
	}
	for _, nodes := range []int{named(k.best.Scenario.Config.Faults), k.best.Scenario.Config.Nodes / 2, k.best.Scenario.Config.Nodes - 1} {
		if c := k.best.Scenario.Config; nodes >= 1 && nodes < c.Nodes && nodes >= named(c.Faults) {
			k.try(func(c *model.Config) { c.Nodes = nodes })
		}
	}
}

// named is the highest number of a machine that faults name, and at least three, which a shard needs.
func named(faults []model.Fault) int {
	most := 3
	for _, f := range faults {
		for _, name := range strings.FieldsFunc(f.Target+" "+f.Other, func(r rune) bool { return r == ' ' || r == ',' }) {
			if n, err := strconv.Atoi(strings.TrimPrefix(name, "n")); err == nil && strings.HasPrefix(name, "n") {
				most = max(most, n)
			}
		}
	}
	return most
}

// room is for how many times its pods a cluster has room.
func room(c model.Config) float64 {
	asked := map[corev1.ResourceName]float64{}
	for _, w := range c.Workloads {
		asked[corev1.ResourcePods] += float64(w.Replicas)
		for name, q := range w.Requests {
			asked[name] += q.AsApproximateFloat64() * float64(w.Replicas)
		}
	}
	least := math.Inf(1)
	for name, sum := range asked {
		have := c.Allocatable[name]
		if sum > 0 {
			least = min(least, have.AsApproximateFloat64()*float64(c.Nodes)/sum)
		}
	}
	return least
}

// Describe says what a shrunk scenario is, as the title of its text.
func (k Shrunk) Describe(original *Scenario, version string) string {
	return fmt.Sprintf("Shrunk from %s, seed %d, by shoal %s: %d of %d faults and %d of %d nodes are left. It shows, at %s: %s: %s",
		original.Name, original.Config.Seed, version, len(units(k.Scenario.Config.Faults)), len(units(original.Faults())),
		k.Scenario.Config.Nodes, original.Config.Nodes, k.Violation.At.Round(time.Millisecond), k.Violation.Checker, k.Violation.Message)
}
