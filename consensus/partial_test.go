package consensus_test

import (
	"fmt"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/store"
)

// TestAPartialPartitionCostsOneRequest severs a follower from its leader, while both reach the third peer. Requests through the follower
// are answered by way of others; not each of them finds out by itself, which takes seconds and leaves writes in doubt.
func TestAPartialPartitionCostsOneRequest(t *testing.T) {
	for name, sever := range map[string]func(n *consensustest.Network, a, b string){
		"raft alone": func(n *consensustest.Network, a, b string) {
			n.Silence(a, b, consensus.ServiceRaft)
			n.Silence(b, a, consensus.ServiceRaft)
		},
		"everything": (*consensustest.Network).Cut,
	} {
		t.Run(name, func(t *testing.T) {
			network, hosts, _ := trio(t, nil)
			mustPut(t, hosts["a"], 1, "/p/start", "v")
			leader, follower := "a", "b"
			for peer, h := range hosts {
				if status(h, 1).Leading {
					leader = peer
				}
			}
			if leader == follower {
				follower = "c"
			}
			h := hosts[follower]
			sever(network, leader, follower)
			const requests = 20
			ctx := within(t, 3*patience)
			inDoubt := 0
			begun := time.Now()
			for i := range requests {
				key := fmt.Sprint("/p/", i)
				for ctx.Err() == nil {
					_, err := h.Propose(ctx, 1, store.Transaction{Ops: []store.Op{{Key: key, Value: []byte("v")}}})
					if err == nil {
						break
					}
					inDoubt++
				}
				mustGet(t, h, 1, key, "v")
				if _, err := h.Close(ctx, 1, h.Now()); err != nil {
					t.Error(err)
				}
			}
			// Two attempts of two seconds for each would be far more, and so would be one.
			if took := time.Since(begun); took > requests*time.Second || inDoubt > 1 {
				t.Errorf("%d writes, reads and barriers took %v, %d writes were in doubt", requests, took, inDoubt)
			}
			network.Heal()
			eventually(t, "the follower follows", func() error {
				_, found, _, err := h.Get(ctx, 1, fmt.Sprint("/p/", requests-1), consensus.Local)
				if err == nil && !found {
					err = fmt.Errorf("it lacks the last write")
				}
				return err
			})
			mustPut(t, h, 1, "/p/after", "v")
			mustGet(t, h, 1, "/p/after", "v")
		})
	}
}
