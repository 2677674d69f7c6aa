package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"shoal/internal/cputime"
)

var peerLog = slog.New(slog.DiscardHandler)

func init() {
	flag.Func("peerlog", "print the peers' logs from this `level` on: debug, info, warn or error", func(text string) error {
		var level slog.Level
		if err := level.UnmarshalText([]byte(text)); err != nil {
			return err
		}
		peerLog = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
		return nil
	})
}

// play runs a plan in a bubble and reports.
func play(t *testing.T, plan Plan) {
	t.Helper()
	report, err := try(t, plan)
	if err != nil {
		t.Errorf("seed %d: %v", plan.Seed, err)
	}
	for _, violation := range report.Violations {
		t.Errorf("seed %d: %v", plan.Seed, violation)
	}
	if report.Reads == 0 || report.Compared == 0 {
		t.Errorf("seed %d: checkers had nothing to look at", plan.Seed)
	}
}

// try runs a plan in a bubble and judges it.
func try(t *testing.T, plan Plan) (Report, error) {
	t.Helper()
	dir, begun, used := t.TempDir(), time.Now(), cputime.Used()
	var report Report
	var err error
	var ticks atomic.Int64
	defer watchTime(&ticks)()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(Epoch)) // a bubble begins in 2000
		ticking, stop := context.WithCancel(context.Background())
		defer stop()
		go tick(ticking, &ticks)
		ctx, cancel := context.WithTimeout(context.Background(), plan.For+time.Hour)
		defer cancel()
		report, err = Run(ctx, dir, plan, peerLog)
	})
	for _, event := range report.Events {
		t.Log(event)
	}
	real := time.Since(begun)
	err = errors.Join(err, report.Judge(plan))
	t.Logf("seed %d: %v; %d pictures of the store, %d replicas compared", plan.Seed, report.Clients, report.Reads, report.Compared)
	t.Logf("simulated: a fleet of %d, seed %d: %d faults in %s of virtual time, %s real, %.1f times as fast, %.0f s of CPU", plan.Peers, plan.Seed, report.Faults, report.Virtual.Round(time.Second),
		real.Round(time.Millisecond), report.Virtual.Seconds()/real.Seconds(), (cputime.Used() - used).Seconds())
	return report, err
}

func TestACalmClusterSettles(t *testing.T) {
	play(t, Plan{Seed: 1, Peers: 3, Workload: Workload{Namespaces: 2, Deployment: 3, StatefulSet: 2}, For: 5 * time.Second, Settle: time.Minute, Users: Users{MinPerMinute: 120}})
}

// TestFaults hurts a small fleet with faults of every kind for a minute of virtual time. SHOAL_FLEET_SEEDS=1-20 runs other seeds.
func TestFaults(t *testing.T) {
	for _, seed := range seeds(t, 1, 1) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			play(t, Plan{
				Seed: seed, Peers: peersWanted(t, 3), Zones: []string{"a", "b", "c"}, Workload: Workload{Namespaces: 2, Deployment: 3, StatefulSet: 2},
				Faults: Faults, For: virtualWanted(t, time.Minute), Settle: 2 * time.Minute, ReplaceAfter: 8 * time.Second,
			})
		})
	}
}

// TestNinePeers hurts nine peers with nine shards in three zones: several faults at once on any machines, then all is healed and must come
// to rest. The seed draws a wrong clock, machines that are cut off, crashes, delay and restarts. SHOAL_FLEET_SEEDS=1-20 and
// SHOAL_FLEET_FOR=10m are the longer form.
func TestNinePeers(t *testing.T) {
	for _, seed := range seeds(t, 1580, 1580) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			play(t, Plan{
				Seed: seed, Peers: peersWanted(t, 9), Zones: []string{"a", "b", "c"}, Workload: Workload{Namespaces: 3, Deployment: 4, StatefulSet: 2},
				Faults: Faults, Mode: Safety, For: virtualWanted(t, 12*time.Second), Settle: 3 * time.Minute, ReplaceAfter: 8 * time.Second,
				Users: Users{MinPerMinute: 60},
			})
		})
	}
}

// seeds are those that the environment names, or the given ones.
func seeds(t *testing.T, first, last uint64) []uint64 {
	if text := os.Getenv("SHOAL_FLEET_SEEDS"); text != "" {
		if n, err := fmt.Sscanf(text, "%d-%d", &first, &last); n != 2 {
			t.Fatalf("SHOAL_FLEET_SEEDS=%s: not FIRST-LAST: %v", text, err)
		}
	}
	var all []uint64
	for seed := first; seed <= last; seed++ {
		all = append(all, seed)
	}
	return all
}

// peersWanted is how many peers the environment wants, or the given number.
func peersWanted(t *testing.T, otherwise int) int {
	text := os.Getenv("SHOAL_FLEET_PEERS")
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("SHOAL_FLEET_PEERS=%s is no number of peers", text)
	}
	return n
}

// virtualWanted is how much virtual time the environment wants (SHOAL_FLEET_FOR=1h), or the given one.
func virtualWanted(t *testing.T, otherwise time.Duration) time.Duration {
	text := os.Getenv("SHOAL_FLEET_FOR")
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("SHOAL_FLEET_FOR=%s is no time", text)
	}
	return d
}
