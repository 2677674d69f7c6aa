package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"shoal/sim/history"
)

// planned is one fault of a plan.
type planned struct {
	kind string
	// begin and end are times since the plan's beginning. What ends by itself, such as a restart, may end at another time.
	begin, end time.Duration
	// peers are the indexes of those whom it concerns.
	peers []int
	// degree is how bad it is, from 0 to 1, where that varies.
	degree   float64
	minority bool
}

// Between faults that are meant to be alone the cluster has this long to recover, before and after.
const (
	recoverLeast = 2 * time.Second
	recoverMore  = 4 * time.Second
)

// plan draws the faults of a run. It is pure: the same chance gives the same plan. Some faults overlap, so that for a while a majority
// may be gone; one peer has one fault at a time, because two would undo each other.
func plan(chance *rand.Rand, kinds []string, peers int, during time.Duration) []planned {
	var faults []planned
	var at time.Duration
	for {
		p := planned{kind: kinds[chance.IntN(len(kinds))], begin: at, degree: chance.Float64()}
		p.end = at + time.Duration(1000+chance.IntN(7000))*time.Millisecond
		if p.end > during {
			return faults
		}
		p.peers = draw(chance, faultKinds[p.kind].spread, peers)
		overlapping := func(other planned) bool { return other.end+recoverLeast > p.begin }
		if slices.ContainsFunc(faults, func(other planned) bool {
			return overlapping(other) && slices.ContainsFunc(p.peers, func(peer int) bool { return slices.Contains(other.peers, peer) })
		}) {
			at = p.begin + 500*time.Millisecond
			continue
		}
		p.minority = len(p.peers) == 1 || faultKinds[p.kind].gentle
		for i := range faults {
			if overlapping(faults[i]) {
				faults[i].minority, p.minority = false, false
			}
		}
		faults = append(faults, p)
		if chance.IntN(4) == 0 {
			at += time.Duration(chance.Int64N(int64(p.end - p.begin)))
			continue
		}
		for _, other := range faults {
			at = max(at, other.end)
		}
		at += recoverLeast + time.Duration(chance.Int64N(int64(recoverMore)))
	}
}

// spread is whom a fault concerns.
type spread int

const (
	one spread = iota
	half
	all
)

func draw(chance *rand.Rand, s spread, peers int) []int {
	order := chance.Perm(peers)
	switch s {
	case one:
		return order[:1]
	case half:
		return order[:peers/2]
	default:
		slices.Sort(order)
		return order
	}
}

// words say what a fault is.
func (p planned) words(names []string) string {
	var whom []string
	for _, peer := range p.peers {
		whom = append(whom, names[peer])
	}
	return fmt.Sprintf("%s: %s", p.kind, strings.Join(whom, ", "))
}

// record is the fault as a history has it.
func (p planned) record(names []string) history.Fault {
	f := history.Fault{Kind: p.kind, What: p.words(names), Minority: p.minority}
	for _, peer := range p.peers {
		f.Peers = append(f.Peers, names[peer])
	}
	return f
}
