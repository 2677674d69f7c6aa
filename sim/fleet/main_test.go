package fleet

import (
	"os"
	"runtime/debug"
	"testing"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// TestMain trades memory for time: what whole peers allocate lives shortly, and a third of the work would be looking for it.
func TestMain(m *testing.M) {
	debug.SetGCPercent(300)
	debug.SetMemoryLimit(2 << 30)
	// Upstream's second handler paces errors by the time of the last one, which another bubble may have seen minutes later.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	os.Exit(m.Run())
}
