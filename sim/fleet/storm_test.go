package fleet

import (
	"fmt"
	"testing"
	"time"
)

// TestStorms hurts a fleet with several faults at once, on any machines. In safety mode only what may never happen is looked for until all is
// healed; in liveness mode a core that holds a majority of every shard must then come to rest without the others. SHOAL_FLEET_SEEDS=1-20
// runs other seeds.
func TestStorms(t *testing.T) {
	for _, test := range []struct {
		mode  Mode
		peers int
	}{{Safety, 3}, {Liveness, 5}} {
		for _, seed := range seeds(t, 1, 1) {
			t.Run(fmt.Sprint(test.mode, " ", seed), func(t *testing.T) {
				play(t, Plan{
					Seed: seed, Peers: peersWanted(t, test.peers), Zones: []string{"a", "b", "c"}, Workload: Workload{Namespaces: 2, Deployment: 3, StatefulSet: 2},
					Faults: Faults, Mode: test.mode, For: virtualWanted(t, 30*time.Second), Settle: 3 * time.Minute, ReplaceAfter: 8 * time.Second,
					Users: Users{MinPerMinute: 60},
				})
			})
		}
	}
}
