// Package cputime tells how much processor time this process has used. On a busy machine that says what work costs where a clock does not.
package cputime

import (
	"syscall"
	"time"
)

// Used is the user and system time of all threads since the process began.
func Used() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // it fails only for a who that there is not
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
