package consensus_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

// TestClocksThatJump sets one host's clock hours forward and back, on the leader and on a follower, while all of them write. The host
// whose clock is wrong refuses and says so; nobody else notices, no revision lies in the future and none goes back.
func TestClocksThatJump(t *testing.T) {
	skews := map[string]*atomic.Int64{"a": {}, "b": {}, "c": {}}
	_, hosts, _ := trio(t, func(c *consensus.Config) {
		skew := skews[c.PeerID]
		c.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
		// The others' median is right as long as one clock alone is wrong.
		c.Offset = func() (time.Duration, bool) { return time.Duration(skew.Load()), true }
	})
	last := store.Revision(0)
	write := func(peer string) error {
		res, err := hosts[peer].Propose(within(t, patience), 1, put("k", fmt.Sprint(peer, last)))
		if err != nil {
			return err
		}
		if rev := res.Revisions[0]; rev <= last {
			t.Errorf("%s: revision %v after %v", peer, rev, last)
		} else {
			last = rev
		}
		if ahead := time.Until(last.Time()); ahead > time.Second {
			t.Errorf("%s: revision %v lies %v in the future", peer, last, ahead)
		}
		return nil
	}
	for _, wrong := range []string{"a", "b", "c"} { // one of them leads
		for _, jump := range []time.Duration{5 * time.Hour, -5 * time.Hour, 3 * time.Second} {
			skews[wrong].Store(int64(jump))
			if err := write(wrong); !errors.Is(err, consensus.ErrClockSkew) {
				t.Errorf("%s is off by %v and wrote: %v", wrong, jump, err)
			}
			for peer := range hosts {
				if peer != wrong {
					if err := write(peer); err != nil {
						t.Errorf("%s while %s is off by %v: %v", peer, wrong, jump, err)
					}
				}
			}
			mustGet(t, hosts[wrong], 1, "k", getLocal(t, hosts, wrong))
		}
		skews[wrong].Store(0)
		if err := write(wrong); err != nil {
			t.Errorf("%s after its clock was set right: %v", wrong, err)
		}
	}
}

// getLocal reads what another host than the named one has.
func getLocal(t *testing.T, hosts map[string]*consensus.Host, not string) string {
	t.Helper()
	for peer, h := range hosts {
		if peer != not {
			kv, _, _, err := h.Get(within(t, patience), 1, "k", consensus.Linearizable)
			if err != nil {
				t.Fatal(err)
			}
			return string(kv.Value)
		}
	}
	return ""
}
