package peer

import (
	"errors"
	"testing"
	"time"
)

// told is a runtime that keeps until when its watchdog lets run what must not run twice.
type told struct {
	Runtime
	renewed time.Time
	until   time.Time
	fails   error
}

func (t *told) Renewed(at time.Time) error {
	t.renewed = at
	return t.fails
}

func (t *told) Restarting(until time.Time) error {
	t.until = until
	return t.fails
}

// TestRenewalsDoNotTakeBackTheTimeForARestart: a peer that has announced its restart goes on for a moment, and renews its lease.
func TestRenewalsDoNotTakeBackTheTimeForARestart(t *testing.T) {
	runtime := &told{}
	w := watchdog{runtime: runtime}
	now := time.Now()
	if err := w.renewed(now); err != nil || runtime.renewed != now {
		t.Fatalf("a renewal was not passed on: %v", err)
	}

	runtime.fails = errors.New("the disk is full")
	if err := w.restart(now.Add(restartPatience)); err == nil {
		t.Error("nobody was told that the watchdog knows nothing of the restart")
	}
	runtime.fails = nil
	later := now.Add(time.Second)
	if err := w.renewed(later); err != nil || runtime.renewed != later {
		t.Errorf("after an announcement that failed, renewals count on: %v, %s", err, runtime.renewed)
	}

	if err := w.restart(now.Add(restartPatience)); err != nil || runtime.until != now.Add(restartPatience) {
		t.Fatalf("the restart was not passed on: %v", err)
	}
	if err := w.renewed(later.Add(time.Second)); err != nil || runtime.renewed != later {
		t.Errorf("a renewal took back what was granted for the restart: %v, %s", err, runtime.renewed)
	}
}
