package consensus_test

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/consensustest"
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

// TestAClockThatIsWrongFromTheStart restarts one host after the other with a clock that is hours off, before anybody has told it so, and
// all of them at once, when nobody knows the median: the others' clocks are asked before the first stamp.
func TestAClockThatIsWrongFromTheStart(t *testing.T) {
	skews := map[string]*atomic.Int64{"a": {}, "b": {}, "c": {}}
	told := map[string]bool{"a": true, "b": true, "c": true}
	clocks := func(c *consensus.Config) {
		skew, told := skews[c.PeerID], told[c.PeerID]
		c.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
		c.Offset = func() (time.Duration, bool) { return time.Duration(skew.Load()), told }
	}
	network, hosts, dirs := trio(t, clocks)
	check := func(wrong string, by time.Duration) {
		t.Helper()
		if _, err := hosts[wrong].Propose(within(t, patience), 1, put("k", "v")); !errors.Is(err, consensus.ErrClockSkew) {
			t.Errorf("%s started %v off and wrote: %v", wrong, by, err)
		}
		for peer, h := range hosts {
			if peer == wrong {
				continue
			}
			rev := mustPut(t, h, 1, "k", peer)
			if ahead := time.Until(rev.Time()); ahead.Abs() > 10*time.Second {
				t.Errorf("%s wrote at a revision %v in the future while %s was %v off", peer, ahead, wrong, by)
			}
		}
	}
	for _, wrong := range []string{"a", "b", "c"} {
		for _, by := range []time.Duration{5 * time.Hour, -5 * time.Hour} {
			stop(t, hosts[wrong])
			skews[wrong].Store(int64(by))
			told[wrong] = false
			hosts[wrong] = network.Open(t, wrong, dirs[wrong], clocks)
			check(wrong, by)
		}
		skews[wrong].Store(0)
	}
	for wrong, h := range hosts {
		told[wrong] = false
		stop(t, h)
	}
	skews["b"].Store(int64(5 * time.Hour))
	for peer := range hosts {
		hosts[peer] = network.Open(t, peer, dirs[peer], clocks)
	}
	check("b", 5*time.Hour)
}

func stop(t *testing.T, h *consensus.Host) {
	t.Helper()
	if err := h.Shutdown(within(t, patience)); err != nil {
		t.Fatal(err)
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

// TestAClusterThatWasFoundedByAClockThatIsAhead: what one host has written hours ahead is no stamp from the future to another that has been
// told of it.
func TestAClusterThatWasFoundedByAClockThatIsAhead(t *testing.T) {
	open := func(peer string, skew time.Duration) *consensus.Host {
		h := consensustest.NewNetwork().Open(t, peer, t.TempDir(), func(c *consensus.Config) {
			c.Now = func() time.Time { return time.Now().Add(skew) }
		})
		consensustest.Found(t, h)
		return h
	}
	founder, other := open("a", 3*time.Hour), open("b", 0)
	ahead := mustPut(t, founder, 1, "k", "v")
	closeUpTo := func() error {
		_, err := other.Close(within(t, patience), 2, ahead)
		return err
	}
	if err := closeUpTo(); !errors.Is(err, consensus.ErrFuture) {
		t.Errorf("nobody has told of %v, and a shard was closed up to it: %v", ahead, err)
	}
	other.Exchange(math.MaxInt64) // nonsense
	if seen := other.Exchange(founder.Exchange(0)); seen < ahead || seen > ahead+store.Tick {
		t.Errorf("told of %v, a host has seen %v", ahead, seen)
	}
	if err := closeUpTo(); err != nil {
		t.Error(err)
	}
	if rev := mustPut(t, other, 1, "k", "v"); rev <= ahead {
		t.Errorf("told of %v, a host wrote at %v", ahead, rev)
	}
}
