package polling

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// spy notes how a test would have failed, and ends the goroutine as a failed test does.
type spy struct {
	testing.TB
	failed string
}

func (s *spy) Fatalf(format string, args ...any) {
	s.failed = strings.TrimSpace(format)
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			s.failed = err.Error()
		}
	}
	runtime.Goexit()
}

// failure is how a test fails that does this, "" if it passes.
func failure(t *testing.T, do func(testing.TB)) string {
	t.Helper()
	s := &spy{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(s)
	}()
	<-done
	return s.failed
}

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		within := func(limit time.Duration) string {
			return failure(t, func(t testing.TB) {
				Until(t, time.Second, limit, "ten seconds pass", func(context.Context) error {
					if time.Since(begun) < 10*time.Second {
						return errors.New("too early")
					}
					return nil
				})
			})
		}
		if failed := within(5 * time.Second); failed != "too early" {
			t.Errorf("within 5 s: %q", failed)
		}
		if failed := within(6 * time.Second); failed != "" || time.Since(begun) != 10*time.Second {
			t.Errorf("%q after %s", failed, time.Since(begun))
		}
	})
}

func TestThroughout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		fine := func(span time.Duration) string {
			return failure(t, func(t testing.TB) {
				Throughout(t, time.Second, span, "all is well", func() error {
					if time.Since(begun) > 10*time.Second {
						return errors.New("too late")
					}
					return nil
				})
			})
		}
		if failed := fine(5 * time.Second); failed != "" || time.Since(begun) != 5*time.Second {
			t.Errorf("for 5 s: %q after %s", failed, time.Since(begun))
		}
		if failed := fine(6 * time.Second); failed != "too late" {
			t.Errorf("for too long: %q", failed)
		}
	})
}
