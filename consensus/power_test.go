package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lni/vfs"

	"shoal/consensus"
	"shoal/consensus/consensustest"
	"shoal/consensus/shardmap"
	"shoal/consensus/store"
)

// powered is a host whose disk forgets what was not synced when the power fails.
type powered struct {
	name string
	fs   *vfs.MemFS
	host *consensus.Host
}

func newPowered(t *testing.T, name string) *powered {
	p := &powered{name: name, fs: vfs.NewStrictMem()}
	if err := p.fs.MkdirAll("/shoal", 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := p.fs.OpenDir("/")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(root.Sync(), root.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *powered) start(t *testing.T, n *consensustest.Network) {
	p.host = n.Open(t, p.name, "/shoal/store", func(c *consensus.Config) {
		c.FS, c.DataShards, c.SnapshotEntries = p.fs, 1, 40
	})
}

// fail takes the power away: the others hear nothing more, and what is synced from now on is not.
func (p *powered) fail(n *consensustest.Network, peers []*powered) {
	for _, other := range peers {
		if other != p {
			n.Cut(p.name, other.name)
		}
	}
	p.fs.SetIgnoreSyncs(true)
}

// end ends what is left of the process, and leaves what the disk remembers.
func (p *powered) end(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.host.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	p.fs.ResetToSyncedState()
	p.fs.SetIgnoreSyncs(false)
}

// TestAcknowledgedWritesSurvivePowerLoss takes the power from one or all of the hosts while clients write, again and again. Whatever was
// acknowledged before must be there after, on one voter and on three.
func TestAcknowledgedWritesSurvivePowerLoss(t *testing.T) {
	for _, voters := range []int{1, 3} {
		t.Run(fmt.Sprint(voters), func(t *testing.T) {
			network := consensustest.NewNetwork()
			var peers []*powered
			var want []shardmap.Want
			for i := range voters {
				p := newPowered(t, fmt.Sprint("peer", i))
				p.start(t, network)
				peers = append(peers, p)
				want = append(want, shardmap.Want{Peer: p.name, Voter: true})
			}
			consensustest.Found(t, peers[0].host)
			for shard := range uint64(2) {
				consensustest.Place(t, peers[0].host, shard, want...)
			}
			w := &writes{acked: map[string]bool{}}
			for round := range 6 {
				failing := peers
				if round%2 == 1 {
					failing = peers[round/2%voters:][:1]
				}
				w.during(t, peers, 150*time.Millisecond, func() {
					for _, p := range failing {
						p.fail(network, peers)
					}
				})
				for _, p := range failing {
					p.end(t)
				}
				network.Heal()
				for _, p := range failing {
					p.start(t, network)
				}
				w.check(t, peers[round%voters].host)
			}
			t.Logf("%d acknowledged writes", len(w.acked))
			if len(w.acked) < 50 {
				t.Errorf("only %d writes were acknowledged, that proves little", len(w.acked))
			}
		})
	}
}

// writes remembers what was acknowledged while the power was on.
type writes struct {
	mu    sync.Mutex
	next  int
	acked map[string]bool
}

// during writes through all peers for a span, lets the power fail, and returns when every client has noticed.
func (w *writes) during(t *testing.T, peers []*powered, span time.Duration, fail func()) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var off atomic.Bool
	var clients sync.WaitGroup
	for i := range 8 {
		host := peers[i%len(peers)].host
		clients.Go(func() {
			for !off.Load() {
				w.mu.Lock()
				w.next++
				key := fmt.Sprint("/w/", w.next)
				w.mu.Unlock()
				_, err := host.Propose(ctx, 1, store.Transaction{Ops: []store.Op{{Key: key, Value: []byte(key)}}})
				if err == nil && !off.Load() {
					w.mu.Lock()
					w.acked[key] = true
					w.mu.Unlock()
				}
				if err != nil && !off.Load() {
					t.Errorf("write %s: %v", key, err)
				}
			}
		})
	}
	time.Sleep(span)
	off.Store(true)
	fail()
	cancel()
	clients.Wait()
}

func (w *writes) check(t *testing.T, h *consensus.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	list, err := h.List(ctx, 1, consensus.ListOptions{Prefix: "/w/"}, consensus.Linearizable)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, kv := range list.KVs {
		have[kv.Key] = kv.Key == string(kv.Value)
	}
	for key := range w.acked {
		if !have[key] {
			t.Fatalf("%s was acknowledged and is lost", key)
		}
	}
}
