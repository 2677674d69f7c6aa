package consensus_test

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
)

// TestCallsWhileAHostIsShutDown: a host is shut down under reads and writes of its only replica, which end with an error or have been
// answered, and nothing panics.
func TestCallsWhileAHostIsShutDown(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16)) // a call is likelier to be interrupted where it must not be
	for range 8 {
		network := consensustest.NewNetwork()
		h := network.Open(t, "a", t.TempDir(), func(c *consensus.Config) { c.DataShards, c.NoReadLeases = 1, true })
		consensustest.Found(t, h)
		mustPut(t, h, 1, "n", "0")
		var clients sync.WaitGroup
		for client := range 24 {
			clients.Go(func() {
				for {
					var err error
					if client%2 == 0 {
						_, _, _, err = h.Get(context.Background(), 1, "n", consensus.Linearizable)
					} else {
						_, err = h.Propose(context.Background(), 1, put("n", "1"))
					}
					if err != nil {
						return
					}
				}
			})
		}
		if err := h.Shutdown(within(t, patience)); err != nil {
			t.Error(err)
		}
		clients.Wait()
	}
}
