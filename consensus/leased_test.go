package consensus_test

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
)

// TestOldLeadersAnswerNothingOld: leaderships are handed over and leaders cut off, again and again, while one client counts up and others
// read on every host, the leader's lease or none. No read may show less than was acknowledged before it began.
func TestOldLeadersAnswerNothingOld(t *testing.T) {
	network, hosts, _ := trio(t, nil)
	names := []string{"a", "b", "c"}
	mustPut(t, hosts["a"], 1, "n", "0")
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer func() { stop(); clients.Wait() }()
	var acknowledged, leased, reads atomic.Int64
	clients.Go(func() {
		for turn := 0; ctx.Err() == nil; turn++ {
			attempt, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			if n, ok := countUp(attempt, hosts[names[turn%3]]); ok {
				acknowledged.Store(n)
			}
			cancel()
		}
	})
	for _, name := range names {
		clients.Go(func() {
			for ctx.Err() == nil {
				least := acknowledged.Load()
				byLease := consensus.Leased(hosts[name], 1)
				attempt, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				kv, _, _, err := hosts[name].Get(attempt, 1, "n", consensus.Linearizable)
				cancel()
				if err != nil {
					continue
				}
				if n, err := strconv.ParseInt(string(kv.Value), 10, 64); err != nil || n < least {
					t.Errorf("%s read %q (%v), lease %v; %d was acknowledged before", name, kv.Value, err, byLease, least)
					return
				}
				reads.Add(1)
				if byLease {
					leased.Add(1)
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	enough := func(changes int) bool { return leased.Load() >= 500 && acknowledged.Load() >= 200 && changes >= 20 }
	changes := 0
	for round := 0; round < 30 || round < 300 && !enough(changes); round++ {
		where, err := hosts[names[round%3]].Where(within(t, patience), 1)
		if err != nil {
			t.Fatal(err)
		}
		next := names[round%3]
		if next == where.Leader {
			next = names[(round+1)%3]
		}
		if round%2 == 0 {
			if hosts[where.Leader].TransferLeadership(within(t, time.Second), 1, next) == nil {
				changes++
			}
		} else {
			for _, other := range names {
				network.Cut(where.Leader, other)
			}
			time.Sleep(300 * time.Millisecond) // an election takes 100 to 200
			network.Heal()
			changes++
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%d reads, %d of them while a lease held; %d acknowledged writes, %d changes of leader", reads.Load(), leased.Load(), acknowledged.Load(), changes)
	if !enough(changes) {
		t.Error("too little of what could go wrong has happened")
	}
}

// countUp adds one to what it reads, on condition that this is still so: a write whose outcome stays unknown must not take effect after
// later ones.
func countUp(ctx context.Context, h *consensus.Host) (int64, bool) {
	kv, _, _, err := h.Get(ctx, 1, "n", consensus.Linearizable)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(kv.Value), 10, 64)
	if err != nil {
		return 0, false
	}
	tx := put("n", strconv.FormatInt(n+1, 10))
	tx.Conditions = []store.Condition{{Key: "n", Revision: kv.Mod}}
	res, err := h.Propose(ctx, 1, tx)
	return n + 1, err == nil && res.OK
}
