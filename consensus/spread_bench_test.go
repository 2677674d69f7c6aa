package consensus_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
	"shoal/internal/cputime"
)

// countedConn counts writes.
type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// BenchmarkSpreadWrites proposes to eight shards in turn, of three voters each, all in this process and on this machine's disk. What counts
// is what a write costs, which a busy machine changes little: CPU time over all voters, and writes to the connections between them.
func BenchmarkSpreadWrites(b *testing.B) {
	const shards = 8
	var sends atomic.Int64
	network := consensustest.NewNetwork()
	var hosts []*consensus.Host
	var want []shardmap.Want
	for i := range 3 {
		peer := fmt.Sprint("peer", i)
		hosts = append(hosts, network.Open(b, peer, b.TempDir(), func(c *consensus.Config) {
			c.DataShards, c.RTT, c.Frugal, c.Logger = shards, 0, false, slog.New(slog.DiscardHandler)
			dial := c.Dial
			c.Dial = func(ctx context.Context, to, service string) (net.Conn, error) {
				conn, err := dial(ctx, to, service)
				if err == nil && service == consensus.ServiceRaft {
					conn = countedConn{conn, &sends}
				}
				return conn, err
			}
		}))
		want = append(want, shardmap.Want{Peer: peer, Voter: true})
	}
	consensustest.Found(b, hosts[0])
	for shard := range uint64(shards + 1) {
		consensustest.Place(b, hosts[0], shard, want...)
	}
	value := []byte(strings.Repeat("v", 256))
	for _, flight := range []int{1, 8, 32, 256} {
		b.Run(fmt.Sprintf("flight=%d", flight), func(b *testing.B) {
			var made atomic.Int64
			var writers sync.WaitGroup
			sent, used := sends.Load(), cputime.Used()
			for range flight {
				writers.Go(func() {
					for i := made.Add(1); i <= int64(b.N); i = made.Add(1) {
						tx := store.Transaction{Ops: []store.Op{{Key: fmt.Sprint("/bench/", i%10_000), Value: fmt.Appendf(value[:256:256], "%08d", i)}}}
						if _, err := hosts[0].Propose(context.Background(), 1+uint64(i)%shards, tx); err != nil {
							b.Error(err)
						}
					}
				})
			}
			writers.Wait()
			b.ReportMetric(float64((cputime.Used()-used).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(sends.Load()-sent)/float64(b.N), "sends/op")
		})
	}
}
