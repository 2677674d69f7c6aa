package consensus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// BenchmarkDurableWrites proposes to one shard, with one and with three voters (all
// on this machine's disk), for values of 256 B and 4 KiB and several proposals in
// flight.
func BenchmarkDurableWrites(b *testing.B) {
	for _, voters := range []int{1, 3} {
		network := consensustest.NewNetwork()
		var hosts []*consensus.Host
		var want []shardmap.Want
		for i := range voters {
			peer := fmt.Sprint("peer", i)
			hosts = append(hosts, network.Open(b, peer, b.TempDir(), func(c *consensus.Config) {
				c.DataShards, c.RTT, c.Frugal, c.Logger = 1, 0, false, slog.New(slog.DiscardHandler)
			}))
			want = append(want, shardmap.Want{Peer: peer, Voter: true})
		}
		consensustest.Found(b, hosts[0])
		for shard := range uint64(2) {
			consensustest.Place(b, hosts[0], shard, want...)
		}
		for _, size := range []int{256, 4096} {
			for _, flight := range []int{1, 32, 256} {
				b.Run(fmt.Sprintf("voters=%d/size=%d/flight=%d", voters, size, flight), func(b *testing.B) {
					writeMany(b, hosts[0], size, flight)
				})
			}
		}
	}
}

func writeMany(b *testing.B, h *consensus.Host, size, flight int) {
	value := bytes.Repeat([]byte("v"), size)
	next := make(chan int)
	var writers sync.WaitGroup
	for range flight {
		writers.Go(func() {
			for i := range next {
				tx := store.Transaction{Ops: []store.Op{{Key: fmt.Sprintf("/bench/%d", i%10000), Value: append(value[:size-8:size-8], fmt.Sprintf("%08d", i)...)}}}
				if _, err := h.Propose(context.Background(), 1, tx); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		next <- i
	}
	close(next)
	writers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

// BenchmarkLinearizableReads reads one key on the shard's leader.
func BenchmarkLinearizableReads(b *testing.B) {
	h := consensustest.NewHost(b)
	if _, err := h.Propose(context.Background(), 1, put("k", "v")); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, _, err := h.Get(context.Background(), 1, "k", consensus.Linearizable); err != nil {
				b.Error(err)
			}
		}
	})
}
