package fleet

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain trades memory for time: what whole peers allocate lives shortly, and a third of the work would be looking for it.
func TestMain(m *testing.M) {
	debug.SetGCPercent(300)
	debug.SetMemoryLimit(2 << 30)
	os.Exit(m.Run())
}
