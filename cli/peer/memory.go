package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A peer's heap is mostly what its start made and what is only read afterwards. With the collector's usual setting an idle peer keeps as much
// garbage as content; with a frugal one a busy peer marks that content several times a second. So the setting follows the load.
const (
	busyPercent = 100
	idlePercent = 25
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

// followLoad sets the collector for as long as ctx lasts, unless GOGC in the environment has set it.
func followLoad(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var l load
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		metrics.Read(sample)
		if !l.next(sample[0].Value.Uint64()) {
			continue
		}
		if l.idle {
			debug.SetGCPercent(idlePercent)
			debug.FreeOSMemory()
		} else {
			debug.SetGCPercent(busyPercent)
		}
	}
}
