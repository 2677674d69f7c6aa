package model

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"shoal/consensus/store"
)

// disturbance is one of the three patterns that break operators elsewhere (Sun et al., "Automatic reliability testing for cluster management
// controllers", OSDI 2022), which befall an operator besides the faults of the run.
type disturbance string

const (
	undisturbed disturbance = "is not disturbed"
	crashing    disturbance = "crashes between two writes"
	blinded     disturbance = "misses events"
	stale       disturbance = "reads what is old"
)

var disturbances = []disturbance{undisturbed, crashing, blinded, stale}

// operator is a user's controller: of a ring, whose size the user says, it keeps as many members, each of which is a key and then a member. Members
// that are too many go in the opposite order, the highest first. It acts on what it has read, through any peer, one write at a time, and says
// of each which version it means. sim/fleet has the same one for real.
type operator struct {
	model   *Model
	chance  *rand.Rand // its own
	shard   *shard
	pattern disturbance
	prefix  string
	at      *node // the peer that it talks to

	view   store.View // what it knows
	knows  bool
	past   []store.View // what it knew, the oldest first
	asked  int          // writes; an answer to an earlier one is void
	giveUp time.Duration
	wrote  int
	down   time.Duration // until when nobody has started it again
	until  time.Duration // when its eyes are opened, or closed, next
	blind  bool
	told   int // the size that it acted on last, which only the deliberate bug asks for
}

// Pace of operators and of the user who tells them what to do.
const (
	operatorPace = 250 * time.Millisecond
	operatorUser = 5 * time.Second
	// operatorPast is for how long what is old may be read.
	operatorPast = 10 * time.Second
	mostMembers  = 5
)

func newOperators(m *Model) []*operator {
	var all []*operator
	for i, pattern := range disturbances {
		all = append(all, &operator{
			model: m, chance: rand.New(rand.NewPCG(m.cfg.Seed, 0x09e7+uint64(i))), shard: m.shards[1], pattern: pattern,
			prefix: fmt.Sprintf("/operators/%d/", i),
		})
	}
	return all
}

// work does the next thing that is to be done.
func (o *operator) work() {
	m := o.model
	m.after(operatorPace, "operator", o.work)
	if m.now < o.down || m.now < o.giveUp || !o.talks() {
		return
	}
	o.look()
	if !o.knows {
		return
	}
	op, condition, more := o.next()
	if !more {
		return
	}
	o.asked++
	asked := o.asked
	o.giveUp = m.now + clientTimeout
	m.proposeTransaction(o.at, o.shard, store.Transaction{Conditions: []store.Condition{condition}, Ops: []store.Op{op}}, nil,
		func(result store.Result, err error) {
			if o.asked != asked {
				return
			}
			o.giveUp = 0
			if o.wrote++; err == nil && result.OK && o.pattern == crashing && o.wrote%2 == 1 {
				o.down, o.knows, o.past, o.told = m.now+o.between(100*time.Millisecond, time.Second), false, nil, 0
			}
		})
}

func (o *operator) between(least, most time.Duration) time.Duration {
	return drawer{o.chance}.between(least, most)
}

// talks tells whether the operator has a peer to talk to, which it changes now and then.
func (o *operator) talks() bool {
	if o.at == nil || o.model.beyond(o.at) || !o.at.active() || o.shard.leaderFor(o.at) == nil || o.chance.IntN(40) == 0 {
		o.at = o.model.nodes[o.chance.IntN(len(o.model.nodes))]
	}
	return o.at.active()
}

// look reads everything again, unless the pattern is against it.
func (o *operator) look() {
	m := o.model
	if m.now >= o.until && (o.pattern == blinded || o.pattern == stale) {
		o.blind, o.until = !o.blind && m.now < max(m.lastHeal, operatorsAtLeast), m.now+o.between(2*time.Second, operatorPast)
		if o.blind && o.pattern == stale && len(o.past) > 0 {
			o.view = o.past[0]
		}
	}
	if o.blind {
		return
	}
	from := o.shard.anyCopy(m, o.at)
	if from == nil {
		return
	}
	o.view, o.knows = from.state.View(), true
	o.past = append(o.past, o.view)
	if most := int(operatorPast / operatorPace); len(o.past) > most {
		o.past = slices.Delete(o.past, 0, len(o.past)-most)
	}
}

// ring is what there is of one.
type ring struct {
	size          int
	keys, members map[int]store.Revision
}

func readRing(v store.View, prefix string) ring {
	r := ring{keys: map[int]store.Revision{}, members: map[int]store.Revision{}}
	v.Ascend(prefix, func(kv store.KV) bool {
		kind, number, _ := strings.Cut(strings.TrimPrefix(kv.Key, prefix), "/")
		i, err := strconv.Atoi(number)
		switch kind {
		case "size":
			r.size, err = strconv.Atoi(string(kv.Value))
		case "key":
			r.keys[i] = kv.Mod
		case "member":
			r.members[i] = kv.Mod
		}
		if err != nil {
			panic(err) // it was written by the model
		}
		return true
	})
	return r
}

// next is the write that brings the ring nearer to what it should be, by what the operator knows.
func (o *operator) next() (store.Op, store.Condition, bool) {
	r, from := readRing(o.view, o.prefix), 0
	if o.model.cfg.bug == bugActsOnEvents {
		if from = min(o.told, r.size); o.told == r.size {
			return store.Op{}, store.Condition{}, false
		}
	}
	write := func(kind string, i int, revision store.Revision) (store.Op, store.Condition, bool) {
		key := fmt.Sprintf("%s%s/%d", o.prefix, kind, i)
		return store.Op{Key: key, Value: []byte(key), Delete: revision != 0}, store.Condition{Key: key, Revision: revision}, true
	}
	for i := from; i < r.size; i++ {
		if r.keys[i] == 0 {
			return write("key", i, 0)
		}
		if r.members[i] == 0 {
			return write("member", i, 0)
		}
	}
	for i := mostMembers; i >= r.size; i-- {
		if at := r.members[i]; at != 0 {
			return write("member", i, at)
		}
		if at := r.keys[i]; at != 0 {
			return write("key", i, at)
		}
	}
	o.told = r.size
	return store.Op{}, store.Condition{}, false
}
