//go:build linux

package containerd

import "context"

// TakeStock is what the engine does when it opens, a second later, and after
// every break of containerd's event stream.
func (e *Engine) TakeStock(ctx context.Context) error { return e.refresh(e.in(ctx)) }
