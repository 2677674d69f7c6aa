//go:build !linux

package peer

import "errors"

// CheckHost refuses every system but Linux: containers need its kernel.
func CheckHost() error { return errors.New("a peer runs on Linux only") }
