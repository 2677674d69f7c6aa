package peer

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestChoosePodRangeNeverGivesOneTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := netip.MustParsePrefix("10.32.0.0/20") // 16 ranges
		taken := map[string]string{}
		peers := rapid.SliceOfDistinct(rapid.StringMatching(`[a-f0-9]{4}`), rapid.ID[string]).Draw(t, "peers")
		for i, peer := range peers {
			choice, mine, err := choosePodRange(cluster, peer, taken)
			if i >= 16 {
				if err == nil {
					t.Fatalf("the %dth peer got %s out of 16 ranges", i+1, choice)
				}
				continue
			}
			if err != nil || mine {
				t.Fatalf("peer %s: %v, mine %v", peer, err, mine)
			}
			if owner, used := taken[choice.Addr().String()]; used {
				t.Fatalf("%s was given to %s and to %s", choice, owner, peer)
			}
			if !cluster.Contains(choice.Addr()) || choice.Bits() != NodePrefixBits {
				t.Fatalf("%s is no /%d of %s", choice, NodePrefixBits, cluster)
			}
			taken[choice.Addr().String()] = peer
			again, mine, err := choosePodRange(cluster, peer, taken)
			if err != nil || !mine || again != choice {
				t.Fatalf("asked again, peer %s gets %s instead of %s", peer, again, choice)
			}
		}
	})
}

func TestChoosePodRangeTakesTheLowestFreeOne(t *testing.T) {
	cluster := netip.MustParsePrefix("10.32.0.0/12")
	taken := map[string]string{"10.32.0.0": "a", "10.32.1.0": "b", "10.32.3.0": "c"}
	choice, _, err := choosePodRange(cluster, "d", taken)
	if err != nil || choice.String() != "10.32.2.0/24" {
		t.Fatalf("got %s, %v", choice, err)
	}
}
