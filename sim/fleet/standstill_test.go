package fleet

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"shoal/internal/cputime"
)

// patienceWithTime is for how long virtual time may stand still while something works.
const patienceWithTime = time.Minute

// spinning is what of the CPU the process must have used meanwhile: on a machine that has none to give, time stands still for no fault of it.
const spinning = 15 * time.Second

// starvedFor is how many times patienceWithTime no machine lacks CPU: then something waits for what virtual time does not know, a mutex that
// is held by somebody who waits.
const starvedFor = 5

// tick tells, from within a bubble and until ctx ends, that its time goes on.
func tick(ctx context.Context, ticks *atomic.Int64) {
	for pause(ctx, 10*time.Millisecond) == nil {
		ticks.Add(1)
	}
}

// watchTime ends the tests when a bubble's time stands still: some goroutine spins without ever waiting for anything. A timeout of the tests
// would show where everybody is at one moment, which is hardly ever where the mistake is; this shows where the time goes. The function that
// it returns ends the watching.
func watchTime(ticks *atomic.Int64) (stop func()) {
	done := make(chan struct{})
	go func() {
		since, still := cputime.Used(), 0
		for last := int64(-1); ; {
			select {
			case <-done:
				return
			case <-time.After(patienceWithTime):
			}
			now := ticks.Load()
			if used := cputime.Used(); now != last {
				last, since, still = now, used, 0
				continue
			} else if still++; used-since < spinning && still < starvedFor {
				continue // it is starved, or waits for the disk
			}
			var profile, stacks bytes.Buffer
			if err := pprof.StartCPUProfile(&profile); err == nil {
				time.Sleep(5 * time.Second)
				pprof.StopCPUProfile()
			}
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			file := filepath.Join(os.TempDir(), "shoal-standstill.pprof")
			_ = os.WriteFile(file, profile.Bytes(), 0o600) // the stacks are told in any case
			panic("virtual time has stood still for a minute or more, after " + (time.Duration(now) * 10 * time.Millisecond).String() + "; profile " + file + ", goroutines:\n" + stacks.String())
		}
	}()
	return func() { close(done) }
}
