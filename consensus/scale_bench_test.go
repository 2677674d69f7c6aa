package consensus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/polling"
)

// BenchmarkScale fills three hosts in one process, each with a voter of all of eight
// data shards, with 100,000 objects of 3 KB, and changes every object once. It tells
// what a host holds in memory, as a multiple of the objects' own 300 MB, before and
// after the change and after a restart, and how long the restart takes. SHOAL_PROFILE
// names a file for a heap profile of the restarted hosts.
func BenchmarkScale(b *testing.B) {
	const objects, size, shards, hosts = 100_000, 3000, 8, 3
	network := consensustest.NewNetwork()
	var dirs [hosts]string
	for i := range dirs {
		dirs[i] = b.TempDir()
	}
	open := func(i int) *consensus.Host {
		cfg := network.Config(fmt.Sprint("peer", i), dirs[i])
		cfg.DataShards, cfg.RTT, cfg.Frugal, cfg.Logger = shards, 0, false, slog.New(slog.DiscardHandler)
		h, err := consensus.Open(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		return h
	}
	var running [hosts]*consensus.Host
	var want []shardmap.Want
	for i := range running {
		running[i] = open(i)
		want = append(want, shardmap.Want{Peer: fmt.Sprint("peer", i), Voter: true})
	}
	consensustest.Found(b, running[0])
	for shard := range uint64(shards + 1) {
		consensustest.Place(b, running[0], shard, want...)
	}
	empty := live()
	perHost := func() float64 { return float64(live()-empty) / hosts / (objects * size) }
	for b.Loop() {
		writeObjects(b, running[0], objects, size, shards, 1)
		b.ReportMetric(perHost(), "x-data/host")
		writeObjects(b, running[0], objects, size, shards, 2)
		b.ReportMetric(perHost(), "x-data/host-changed")
		reached := revisions(b, running[0], shards)
		for _, h := range running {
			shutDown(b, h)
		}
		running = [hosts]*consensus.Host{}
		debug.FreeOSMemory()
		b.ReportMetric(perHost(), "x-data/host-closed")
		empty = live() // what closed hosts leave behind a new process would not have
		begun := time.Now()
		for i := range running {
			running[i] = open(i)
		}
		awaitRevisions(b, running[:], reached)
		b.ReportMetric(time.Since(begun).Seconds(), "s-restart")
		b.ReportMetric(perHost(), "x-data/host-restarted")
		profileHeap(b)
	}
	for _, h := range running {
		shutDown(b, h)
	}
}

// live is what is reachable now, in bytes.
func live() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func profileHeap(b *testing.B) {
	path := os.Getenv("SHOAL_PROFILE")
	if path == "" {
		return
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := pprof.WriteHeapProfile(f); err != nil {
		b.Fatal(err)
	}
}

// writeObjects writes every object, a hundred in a transaction.
func writeObjects(b *testing.B, h *consensus.Host, objects, size, shards int, round byte) {
	b.Helper()
	const together = 100
	var writing errgroup.Group
	writing.SetLimit(32)
	for first := 0; first < objects; first += together {
		writing.Go(func() error {
			var tx store.Transaction
			for i := first; i < first+together; i++ {
				key := fmt.Sprintf("/registry/pods/namespace-%d/deployment-7c9f5b6d4-x%06d", first/together%64, i)
				tx.Ops = append(tx.Ops, store.Op{Key: key, Value: bytes.Repeat([]byte{round}, size)})
			}
			res, err := h.Propose(context.Background(), uint64(first/together%shards)+1, tx)
			if err == nil && !res.OK {
				err = fmt.Errorf("refused: %+v", res.Failed)
			}
			return err
		})
	}
	if err := writing.Wait(); err != nil {
		b.Fatal(err)
	}
}

// revisions are those of the data shards, as a host shows them.
func revisions(b *testing.B, h *consensus.Host, shards int) []store.Revision {
	b.Helper()
	var all []store.Revision
	for shard := range shards {
		view, ready := h.Local(uint64(shard + 1))
		if !ready {
			b.Fatalf("shard %d is not ready", shard+1)
		}
		all = append(all, view.Revision())
	}
	return all
}

// awaitRevisions waits until every host has applied everything up to them.
func awaitRevisions(b *testing.B, hosts []*consensus.Host, want []store.Revision) {
	b.Helper()
	polling.Until(b, 5*time.Millisecond, 2*time.Minute, "every shard is back on every host", func(context.Context) error {
		for _, h := range hosts {
			for i, rev := range want {
				if view, ready := h.Local(uint64(i + 1)); !ready || view.Revision() < rev {
					return fmt.Errorf("shard %d is not", i+1)
				}
			}
		}
		return nil
	})
}

func shutDown(b *testing.B, h *consensus.Host) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Shutdown(ctx); err != nil {
		b.Error(err)
	}
}
