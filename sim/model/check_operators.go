package model

import (
	"fmt"
	"strconv"
	"time"

	"shoal/consensus/store"
)

// operatorsCheck lets a user tell operators what to do, each disturbed by one of the patterns that break operators elsewhere, and demands that
// all come to the same end: what the user has asked for last, whatever happened on the way.
type operatorsCheck struct {
	all []*operator
	// since is when the user has changed something last.
	since time.Duration
	turn  int
}

const (
	// operatorsAtLeast is for how long the user changes something, also where nothing else happens.
	operatorsAtLeast = 30 * time.Second
	// operatorsBound is what operators may take when nothing befalls them any more: one may be blind for ten seconds more, and wait for a
	// write that is lost for six.
	operatorsBound = 25 * time.Second
)

// begin starts the operators, if the run has any.
func (c *operatorsCheck) begin(m *Model) {
	if !m.cfg.Operators {
		return
	}
	c.all = newOperators(m)
	for _, o := range c.all {
		m.after(2*time.Second, "operator", o.work)
	}
	m.after(2*time.Second, "operators' user", func() { c.ask(m) })
}

// ask is what the user does, to every ring the same: sizes, and a member that is deleted by hand. The last size is asked for when the faults are
// over.
func (c *operatorsCheck) ask(m *Model) {
	sizes := []int{3, 1, 4, 0, 2, 5}
	size := sizes[c.turn%len(sizes)]
	last := m.now >= max(m.lastHeal, operatorsAtLeast)
	if last {
		size = 2
	}
	c.turn++
	open, failed := len(c.all), false
	for _, o := range c.all {
		op := store.Op{Key: o.prefix + "size", Value: []byte(strconv.Itoa(size))}
		if size == 0 {
			op = store.Op{Key: o.prefix + "member/0", Delete: true}
		}
		if !o.talks() {
			continue
		}
		m.proposeTransaction(o.at, o.shard, store.Transaction{Ops: []store.Op{op}}, nil, func(_ store.Result, err error) {
			c.since = m.now
			failed = failed || err != nil
			if open--; open == 0 && last && !failed {
				c.turn = -1
			}
		})
	}
	m.after(operatorUser, "operators' user", func() {
		if c.turn >= 0 {
			c.ask(m)
		}
	})
}

func (c *operatorsCheck) finish(m *Model) {
	if len(c.all) == 0 || m.cfg.ReadyWithin == 0 || m.checks.convergence.since < 0 || c.turn >= 0 || m.checks.clients.lost[1] ||
		m.now-max(c.since, m.lastHeal) < operatorsBound {
		return
	}
	v := m.shards[1].leads.state.View()
	for _, o := range c.all {
		r := readRing(v, o.prefix)
		if wrong := r.wrong(); wrong != "" {
			m.violate(checkerOperators, "the ring of the operator that %s, which is to have %d members, %s", o.pattern, r.size, wrong)
		}
	}
}

// wrong says how a ring differs from what its size asks for, or nothing.
func (r ring) wrong() string {
	for i := range mostMembers + 1 {
		switch key, member := r.keys[i] != 0, r.members[i] != 0; {
		case i < r.size && (!key || !member):
			return fmt.Sprintf("ends without member %d (key: %t, member: %t)", i, key, member)
		case i >= r.size && (key || member):
			return fmt.Sprintf("ends with what is left of member %d (key: %t, member: %t)", i, key, member)
		}
	}
	return ""
}
