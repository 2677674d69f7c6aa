// Package boottime reads the clock that measures how long a machine has been up.
package boottime

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now is CLOCK_BOOTTIME: all processes of a machine share it, nobody can set it, and unlike Go's monotonic clock it also counts the time
// for which the machine is suspended. It starts anew with the machine.
func Now() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
