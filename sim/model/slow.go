package model

import (
	"slices"
	"time"
)

// slowStep is a step for which a slow machine takes its time.
type slowStep struct {
	step
	due   time.Duration
	rate  float64
	taken bool
}

// later asks for a step of the machine, after a delay at its present speed. Where that changes, what is left of the delay does as well: a
// machine that is slow no more does not sleep on for as long as it would have.
func (n *node) later(delay time.Duration, kind string, do func()) {
	if n.slow <= 1 {
		n.model.after(delay, kind, do)
		return
	}
	delay = time.Duration(n.slow * float64(delay))
	s := &slowStep{step: step{kind: kind, do: do}, due: n.model.now + delay, rate: n.slow}
	if len(n.slowed) == cap(n.slowed) {
		n.slowed = slices.DeleteFunc(n.slowed, func(s *slowStep) bool { return s.taken })
	}
	n.slowed = append(n.slowed, s)
	n.model.after(delay, kind, func() {
		if !s.taken {
			s.taken = true
			do()
		}
	})
}

// setSlow changes how many times as slow the machine is as it should be.
func (n *node) setSlow(rate float64) {
	waiting := n.slowed
	n.slow, n.slowed = rate, nil
	for _, s := range waiting {
		if !s.taken {
			s.taken = true
			n.later(time.Duration(float64(s.due-n.model.now)/s.rate), s.kind, s.do)
		}
	}
}
