package main

import (
	"fmt"
	"time"

	"shoal/sim/history"
)

// measured says how much clients did, without which the absence of violations would mean nothing.
type measured struct {
	operations, acknowledged, failed, unknown int
	watches, events                           int
	during                                    time.Duration
	// hurt and answered count the operations that began while a minority was hurt, and those of them that were answered.
	hurt, answered int
}

// measure counts.
func measure(h *history.History) measured {
	m := measured{watches: len(h.Watches)}
	for i := range h.Watches {
		m.events += len(h.Watches[i].Events)
	}
	var last time.Duration
	first := time.Duration(-1)
	for i := range h.Operations {
		op := &h.Operations[i]
		if op.Final {
			continue
		}
		if first < 0 || op.Invoke < first {
			first = op.Invoke
		}
		last = max(last, op.Return)
		m.operations++
		answered := op.Outcome == history.OK || op.Outcome == history.Failed && op.Failure != history.Refused
		switch op.Outcome {
		case history.OK:
			m.acknowledged++
		case history.Failed:
			m.failed++
		default:
			m.unknown++
		}
		if minorityHurt(h.Faults, op.Invoke) {
			m.hurt++
			if answered {
				m.answered++
			}
		}
	}
	m.during = last - first
	return m
}

// minorityHurt says that at a moment a fault was under way that leaves every shard its quorum.
func minorityHurt(faults []history.Fault, at time.Duration) bool {
	hurt := false
	for _, f := range faults {
		if f.Begin <= at && at < f.End {
			if !f.Minority {
				return false
			}
			hurt = true
		}
	}
	return hurt
}

func (m measured) rate() float64 { return float64(m.operations) / max(m.during.Seconds(), 1) }

// share is that of the answered operations while a minority was hurt.
func (m measured) share() float64 { return float64(m.answered) / float64(max(m.hurt, 1)) }

func (m measured) String() string {
	return fmt.Sprintf("%d operations in %.0f s (%.0f/s; %d ok, %d failed, %d unknown), %d watches with %d events; with a minority hurt %.0f %% of %d were answered",
		m.operations, m.during.Seconds(), m.rate(), m.acknowledged, m.failed, m.unknown, m.watches, m.events, 100*m.share(), m.hurt)
}

// invalid says why the run proves nothing, nil if it does.
func (m measured) invalid(cfg Config) error {
	if m.rate() < cfg.MinRate {
		return fmt.Errorf("the run is not valid: clients reached %.0f operations a second, not %.0f", m.rate(), cfg.MinRate)
	}
	if m.hurt > 0 && m.share() < cfg.MinAnswered {
		return fmt.Errorf("the run is not valid: with a minority hurt only %.0f %% of the operations were answered, not %.0f %%", 100*m.share(), 100*cfg.MinAnswered)
	}
	return nil
}
