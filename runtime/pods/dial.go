package pods

import (
	"context"
	"net"
)

// DialFunc connects like net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)
