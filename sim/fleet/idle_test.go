package fleet

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"shoal/internal/cputime"
)

// TestIdlePeers runs peers that have nothing to do, and tells what one of them costs: that is what an idle peer costs on a host,
// without its kernel's part. SHOAL_FLEET_PEERS=9 and SHOAL_FLEET_FOR=1h are for profiles; a virtual minute of the default is cheap.
func TestIdlePeers(t *testing.T) {
	peers, dir := peersWanted(t, 1), t.TempDir()
	var used, took time.Duration
	virtual := virtualWanted(t, time.Minute)
	synctest.Test(t, func(t *testing.T) {
		f := Open(dir, 1, peerLog)
		defer f.Close()
		ctx, cancel := context.WithTimeout(context.Background(), virtual+time.Hour)
		defer cancel()
		if err := f.Grow(ctx, peers); err != nil {
			t.Error(err)
			return
		}
		time.Sleep(20 * time.Second)
		before, begun := cputime.Used(), realTime(t)
		time.Sleep(virtual)
		used, took = cputime.Used()-before, realTime(t)-begun
	})
	t.Logf("%d idle peers: %.0f ms of CPU a peer and virtual minute, %.0f times as fast as real time", peers, used.Seconds()*1000/float64(peers)/virtual.Minutes(), virtual.Seconds()/took.Seconds())
}

// realTime is the machine's clock, which stands outside of the bubble.
func realTime(t *testing.T) time.Duration {
	var now syscall.Timeval
	if err := syscall.Gettimeofday(&now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
