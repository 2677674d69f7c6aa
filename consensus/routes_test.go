package consensus

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"shoal/consensus/shardmap"
)

// TestCandidates: everybody who is alive or holds a replica is asked, once, the leader first, then the living holders, then the other living
// peers, then the dead holders, and never this peer itself.
func TestCandidates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peer := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("p", rapid.IntRange(0, 9).Draw(t, "peer")) })
		alive := rapid.SliceOfDistinct(peer, rapid.ID[string]).Draw(t, "alive")
		holders := rapid.SliceOfNDistinct(peer, 0, 5, rapid.ID[string]).Draw(t, "holders")
		leader := rapid.SampledFrom(append([]string{""}, holders...)).Draw(t, "leader")
		r := newRoutes(Config{PeerID: "p0", Peers: func() []string { return slices.Clip(alive) }, Logger: slog.New(slog.DiscardHandler)})
		a := shardmap.Assignment{Shard: 1}
		for i, holder := range holders {
			a.Replicas = append(a.Replicas, shardmap.Replica{ID: uint64(i + 1), Peer: holder, Voter: true})
		}
		r.leaders[1], r.assignments[1] = leader, a
		list := r.candidates(1)
		rank := func(peer string) int {
			holds, lives := slices.Contains(holders, peer), slices.Contains(alive, peer)
			switch {
			case peer == leader:
				return 0
			case holds && lives:
				return 1
			case lives:
				return 2
			default:
				return 3
			}
		}
		want := map[string]bool{}
		for _, peer := range append(slices.Clone(alive), holders...) {
			want[peer] = peer != "p0"
		}
		for i, peer := range list {
			if !want[peer] {
				t.Errorf("%s is there twice, or for nothing: %v", peer, list)
			}
			delete(want, peer)
			if i > 0 && rank(peer) < rank(list[i-1]) {
				t.Errorf("%s comes after %s: %v", peer, list[i-1], list)
			}
		}
		for peer, missing := range want {
			if missing {
				t.Errorf("%s is missing: %v", peer, list)
			}
		}
	})
}
