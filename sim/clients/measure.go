package clients

import (
	"fmt"
	"time"

	"shoal/sim/history"
)

// Measured says how much clients did, without which the absence of violations would mean nothing.
type Measured struct {
	operations, acknowledged, failed, unknown int
	watches, events                           int
	during                                    time.Duration
	// hurt and answered count the operations that began while a minority was hurt, and those of them that were answered.
	hurt, answered int
}

// Measure counts.
func Measure(h *history.History) Measured {
	m := Measured{watches: len(h.Watches)}
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

// Rate is how many operations a second all clients together did.
func (m Measured) Rate() float64 { return float64(m.operations) / max(m.during.Seconds(), 1) }

// Share is that of the answered operations while a minority was hurt.
func (m Measured) Share() float64 { return float64(m.answered) / float64(max(m.hurt, 1)) }

func (m Measured) String() string {
	return fmt.Sprintf("%d operations in %.0f s (%.0f/s; %d ok, %d failed, %d unknown), %d watches with %d events; with a minority hurt %.0f %% of %d were answered",
		m.operations, m.during.Seconds(), m.Rate(), m.acknowledged, m.failed, m.unknown, m.watches, m.events, 100*m.Share(), m.hurt)
}

// Invalid says why a recording proves nothing, nil if it does: clients did fewer operations a second than the rate, or less than the share
// of them was answered while a minority was hurt.
func (m Measured) Invalid(rate, share float64) error {
	if m.Rate() < rate {
		return fmt.Errorf("the run is not valid: clients reached %.1f operations a second, not %.1f", m.Rate(), rate)
	}
	if m.hurt > 0 && m.Share() < share {
		return fmt.Errorf("the run is not valid: with a minority hurt only %.0f %% of the operations were answered, not %.0f %%", 100*m.Share(), 100*share)
	}
	return nil
}
