package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A peer's heap is mostly what its start made and what is only read afterwards. With the collector's usual setting an idle peer keeps as much
// garbage as content; with a frugal one a busy peer marks that content several times a second. So the setting follows the load, and the
// size: a small heap may double while the peer is busy, of a large one garbage stays a quarter, so that no request makes a peer with a large
// store much larger. Marking a large heap is cheap for its size, since most of it is stored values, which hold no pointers.
const (
	busyPercent = 100
	idlePercent = 25
	// busyGarbage is how much garbage a busy peer may always keep.
	busyGarbage = 96 << 20
	// busyRate, in bytes allocated per second, is far above what an idle peer's heartbeats need.
	busyRate = 8 << 20
	// quietFor is for how many seconds less than that must be allocated before a peer counts as idle.
	quietFor = 10
)

// load tells busy from idle by how much is allocated.
type load struct {
	allocated uint64
	quiet     int
	idle      bool
}

// next takes how much has been allocated up to now, once a second. It is true when the load has changed from busy to idle or back.
func (l *load) next(allocated uint64) bool {
	grown := allocated - l.allocated
	l.allocated = allocated
	if grown > busyRate {
		l.quiet = 0
	} else {
		l.quiet = min(l.quiet+1, quietFor)
	}
	idle := l.quiet == quietFor
	changed := idle != l.idle
	l.idle = idle
	return changed
}

// percent is the collector's setting for a load and a size of what is alive.
func percent(idle bool, alive uint64) int {
	if idle {
		return idlePercent
	}
	return int(min(max(100*busyGarbage/max(alive, 1), idlePercent), busyPercent))
}

// followLoad sets the collector for as long as ctx lasts, unless GOGC in the environment has set it.
func followLoad(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	var l load
	set := busyPercent
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		metrics.Read(sample)
		changed := l.next(sample[0].Value.Uint64())
		// The setting stops the world for a moment: not for every small step.
		if want := percent(l.idle, sample[1].Value.Uint64()); changed || want < set*9/10 || want > set*11/10 {
			debug.SetGCPercent(want)
			set = want
		}
		if changed && l.idle {
			debug.FreeOSMemory()
		}
	}
}
