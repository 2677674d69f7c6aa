//go:build !wip

// Package peer is one peer: it wires consensus, placement, runtime and mesh together and serves the Kubernetes API over them.
package peer

import (
	"context"
	"errors"
)

// Run is being assembled.
func Run(context.Context, Config) error { return errors.New("not assembled yet") }
